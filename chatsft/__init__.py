"""Chat fine-tuning for nanochat models inside the Hugging Face ecosystem.

Importing the package registers the model and the tokenizer with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM, GPTModel

__version__ = "0.1.0"

AutoConfig.register("nanochat_gpt", GPTConfig)
AutoModel.register(GPTConfig, GPTModel)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM)

__all__ = ["GPTConfig", "GPTForCausalLM", "GPTModel"]
