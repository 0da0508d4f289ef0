"""From a GPT that reads text to one that reads images: its encoder, its projector and its tokens."""

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_vision_available

from .conversation import IMAGE_TOKEN
from .modeling_gpt import GPTForCausalLM
from .modeling_gpt_vision import GPTForConditionalGeneration, GPTProjector, GPTVisionConfig, blank_shape
from .processing_gpt import GPTProcessor
from .tokenization_gpt import GPTTokenizer


class VisionError(ValueError):
    """An encoder that cannot be added to a model, with what to do."""


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, vision_model: str) -> None:
    """Give a tokenizer the tokens for the images of an encoder, of which the configuration alone is loaded."""
    if not isinstance(tokenizer, GPTTokenizer):
        raise VisionError(
            f"vision_model is for nanochat models, but {tokenizer.name_or_path} has a {type(tokenizer).__name__}. Leave it out."
        )
    if tokenizer.num_image_tokens:
        raise VisionError(f"{tokenizer.name_or_path} belongs to a model that reads images already. Leave vision_model out.")
    tokenizer.add_image_tokens(count_image_tokens(load_encoder_config(vision_model), vision_model))


def add_encoder(model: PreTrainedModel, tokenizer: GPTTokenizer, vision_model: str) -> GPTForConditionalGeneration:
    """Put an encoder and a new projector in front of a model whose tokenizer has image tokens.

    The tokens get embeddings, value embeddings and rows of the head, as transformers makes them: near the mean of the others.
    """
    if not isinstance(model, GPTForCausalLM):
        raise VisionError(f"vision_model adds an encoder to a nanochat model, not to a {type(model).__name__}. Leave it out.")
    model.resize_token_embeddings(len(tokenizer))
    try:
        encoder, loaded = AutoModel.from_pretrained(
            vision_model, config=load_encoder_config(vision_model), dtype=model.dtype, output_loading_info=True
        )
    except Exception as error:
        raise VisionError(f"vision_model {vision_model} does not load: {error}") from error
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith(("head.", "pooler.")))  # which no vector goes through
    if missing:
        raise VisionError(
            f"vision_model {vision_model} lacks weights of its encoder ({len(missing)}, as {missing[0]}). Name a model that is the encoder."
        )
    encoder.config._name_or_path = ""  # a folder of this machine, as often as not
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    own = ("model_type", "architectures", "auto_map", "transformers_version")
    fields = {name: value for name, value in model.config.to_dict().items() if name not in own}
    config = GPTVisionConfig(**fields, vision_config=encoder.config, image_token_id=image_token_id)
    with torch.device("meta"):
        combined = GPTForConditionalGeneration(config)
    combined.load_state_dict(model.state_dict(), strict=False, assign=True)
    combined.model.vision_tower = encoder.to(model.device)
    combined.model.projector = GPTProjector(config).to(model.device, model.dtype)
    combined.generation_config = model.generation_config
    combined.set_attn_implementation(model.config._attn_implementation)
    return combined.train(model.training)


def reads_images(model: PreTrainedModel) -> bool:
    return isinstance(model, GPTForConditionalGeneration)


def freeze_encoder(model: GPTForConditionalGeneration) -> None:
    """Train the projector and the trunk alone."""
    model.model.vision_tower.requires_grad_(False)


def load_encoder_config(vision_model: str) -> PreTrainedConfig:
    """Load the configuration of a vision encoder, alone or as a part of a model of images and texts, as CLIP and SigLIP are."""
    try:
        config = AutoConfig.from_pretrained(vision_model)
    except Exception as error:
        raise VisionError(f"vision_model {vision_model} does not load: {error}") from error
    return (config.sub_configs.get("vision_config") and config.vision_config) or config


def count_image_tokens(config: PreTrainedConfig, name: str = "") -> int:
    """Count the vectors that an encoder makes of an image, by a pass of one without weights."""
    try:
        with torch.device("meta"):
            output = AutoModel.from_config(config)(pixel_values=torch.zeros(blank_shape(config)))
        return output.last_hidden_state.shape[1]
    except Exception as error:
        raise VisionError(f"vision_model {name} is no encoder that gives one vector a patch, as SigLIP's ({error}). Name one.") from error


def load_processor(tokenizer: GPTTokenizer, name: str) -> GPTProcessor:
    """Load the image processor that belongs to an encoder or to a model with one, and join it with the tokenizer."""
    try:
        if not is_vision_available():
            raise ImportError("pillow is not installed")
        return GPTProcessor(AutoImageProcessor.from_pretrained(name), tokenizer)
    except ImportError as error:
        problem = " ".join(str(error).split())
        raise VisionError(f"images need packages that are not installed: pip install 'chatsft[vision]' ({problem})") from error
    except Exception as error:
        raise VisionError(f"{name} has no image processor that loads: {error}") from error


__all__ = ["VisionError", "add_encoder", "add_image_tokens", "count_image_tokens", "freeze_encoder", "load_processor", "reads_images"]
