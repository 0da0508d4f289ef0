"""Chat fine-tuning for nanochat models inside the Hugging Face ecosystem.

Importing the package registers the model and the tokenizer with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.configuration_gpt_vision import GPTVisionConfig
from chatsft.model.modeling_gpt import GPTForCausalLM, GPTModel
from chatsft.model.modeling_gpt_vision import GPTForConditionalGeneration, GPTVisionModel
from chatsft.model.processing_gpt import GPTProcessor
from chatsft.model.tokenization_gpt import ConversationError, GPTTokenizer

__version__ = "0.1.0"

AutoConfig.register("nanochat_gpt", GPTConfig)
AutoModel.register(GPTConfig, GPTModel)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM)
AutoTokenizer.register(GPTConfig, fast_tokenizer_class=GPTTokenizer)

AutoConfig.register("nanochat_gpt_vision", GPTVisionConfig)
AutoModel.register(GPTVisionConfig, GPTVisionModel)
AutoModelForCausalLM.register(GPTVisionConfig, GPTForConditionalGeneration)
AutoModelForImageTextToText.register(GPTVisionConfig, GPTForConditionalGeneration)
AutoTokenizer.register(GPTVisionConfig, fast_tokenizer_class=GPTTokenizer)
AutoProcessor.register(GPTVisionConfig, GPTProcessor)

# saved models bring their code along, for processes without this package
GPTConfig.register_for_auto_class()
GPTModel.register_for_auto_class("AutoModel")
GPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
GPTTokenizer.register_for_auto_class()
GPTVisionConfig.register_for_auto_class()
GPTVisionModel.register_for_auto_class("AutoModel")
GPTForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
GPTProcessor.register_for_auto_class()

__all__ = [
    "ConversationError",
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForConditionalGeneration",
    "GPTModel",
    "GPTProcessor",
    "GPTTokenizer",
    "GPTVisionConfig",
    "GPTVisionModel",
]
