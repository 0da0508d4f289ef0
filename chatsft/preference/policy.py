"""The model that is trained after fine-tuning, and what is known of it before."""

import copy
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel, set_seed

from chatsft.adapters import add_adapter, base_fingerprint, check_adapter_arguments, quantization_options
from chatsft.arguments import ModelArguments, RecipeError
from chatsft.model.loading import load_model_and_tokenizer, load_tokenizer
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.nanochat_origin import Origin, find_origin


class Policy(NamedTuple):
    """A model to train.

    Args:
        model: with an adapter where the recipe asks for one.
        reference: the same as it is before training, where one is asked for.
        origin: what nanochat kept beside it, which goes beside the weights that are trained from it.
        fingerprint: of the base of an adapter.
    """

    model: nn.Module
    reference: PreTrainedModel | None
    tokenizer: GPTTokenizer
    origin: Origin | None
    fingerprint: str | None


def load_policy(model_args: ModelArguments, seed: int, with_reference: bool) -> Policy:
    """Load a model that answers in nanochat's chat format, or say why there is none."""
    check_adapter_arguments(model_args)
    name, tokenizer_path = model_args.model_name_or_path, model_args.tokenizer_path
    reads_images = load_tokenizer(name, tokenizer_path).num_image_tokens > 0  # another format is refused before gigabytes are read
    if reads_images or model_args.vision_model is not None:
        reader = name if reads_images else "vision_model"
        raise RecipeError(f"{reader} reads images, but preferences and rewards are for models that read text only.")
    options = quantization_options(model_args) | {"attn_implementation": model_args.attn_implementation}
    model, tokenizer = load_model_and_tokenizer(name, tokenizer_path, **options)
    reference = copy.deepcopy(model).requires_grad_(False) if with_reference else None
    origin = find_origin(name) if isinstance(model, GPTForCausalLM) else None
    fingerprint = base_fingerprint(model, model_args)
    if model_args.lora_r is not None:
        set_seed(seed)
        model = add_adapter(model, tokenizer, model_args)
    return Policy(model, reference, tokenizer, origin, fingerprint)
