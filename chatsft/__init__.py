"""Chat fine-tuning for nanochat models inside the Hugging Face ecosystem.

Importing the package registers the model and the tokenizer with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM, GPTModel
from chatsft.model.tokenization_gpt import ConversationError, GPTTokenizer

__version__ = "0.1.0"

AutoConfig.register("nanochat_gpt", GPTConfig)
AutoModel.register(GPTConfig, GPTModel)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM)
AutoTokenizer.register(GPTConfig, fast_tokenizer_class=GPTTokenizer)

# saved models bring their code along, for processes without this package
GPTConfig.register_for_auto_class()
GPTModel.register_for_auto_class("AutoModel")
GPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
GPTTokenizer.register_for_auto_class()

__all__ = ["ConversationError", "GPTConfig", "GPTForCausalLM", "GPTModel", "GPTTokenizer"]
