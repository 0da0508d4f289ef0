"""transformers' own NanoChat, which is the architecture of October 2025, to our model and back.

karpathy/nanochat-d32 is published in this form. The two models compute the same; only two tensors are named differently, and
NanoChat's configuration names the epsilon of its norms.
"""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, NanoChatConfig, NanoChatForCausalLM, PreTrainedConfig
from transformers.utils import logging

from .configuration_gpt import GPTConfig
from .modeling_gpt import GPTForCausalLM
from .nanochat_tokenizer import build_tokenizer, encoding_of
from .tokenization_gpt import GPTTokenizer

logger = logging.get_logger(__name__)

NORM_EPSILON = torch.finfo(torch.float32).eps
"""What nanochat's norms add, in bfloat16 too. transformers' default is 1e-6."""

_OUR_NAMES = {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}


class NanoChatError(ValueError):
    """A model that the other architecture cannot express, with the reasons."""


def is_transformers_nanochat(name_or_path: str | Path) -> bool:
    """Tell whether a saved model or a Hub id is transformers' NanoChat; False where there is no configuration."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(str(name_or_path))
    except (OSError, json.JSONDecodeError):
        return False
    return config.get("model_type") == NanoChatConfig.model_type


def load_transformers_nanochat(name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> GPTForCausalLM:
    """Build our model from a NanoChat checkpoint, in evaluation mode as from_pretrained gives it.

    Raises:
        NanoChatError: on a configuration that nanochat's models do not have, and on missing or unknown tensors.
    """
    gpt_config(NanoChatConfig.from_pretrained(name_or_path))  # refuses before gigabytes are read
    source, loading = NanoChatForCausalLM.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True)
    problems = [f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, names))[:10])}" for kind, names in loading.items() if names]
    if problems:
        raise NanoChatError(f"{name_or_path} is not a whole NanoChat model ({'; '.join(problems)}). Download it again.")
    with torch.device("meta"):
        model = GPTForCausalLM(gpt_config(source.config))
    model.load_state_dict(rename_tensors(source.state_dict()), strict=True, assign=True)
    model.generation_config = source.generation_config
    _warn_of_epsilon(source.config.rms_norm_eps, model)
    return model.eval()


def load_transformers_nanochat_tokenizer(name_or_path: str | Path) -> GPTTokenizer:
    """Build our tokenizer from the one of a NanoChat checkpoint, which knows the same tokens but not nanochat's rendering."""
    return build_tokenizer(encoding_of(AutoTokenizer.from_pretrained(name_or_path).backend_tokenizer, name_or_path))


def gpt_config(config: NanoChatConfig) -> GPTConfig:
    """Translate a NanoChat configuration into ours."""
    rope = config.rope_parameters
    wanted = {
        "hidden_act": (config.hidden_act, "relu2"),
        "attention_bias": (config.attention_bias, False),
        "attention_dropout": (config.attention_dropout, 0.0),
        "tie_word_embeddings": (config.tie_word_embeddings, False),
        "rope_type": (rope["rope_type"], "default"),
    }
    differing = [f"{name} is {value!r}, not {needed!r}" for name, (value, needed) in wanted.items() if value != needed]
    if differing:
        raise NanoChatError(f"this NanoChat differs from every model nanochat trains: {'; '.join(differing)}.")
    return GPTConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=float(rope["rope_theta"]),
        final_logit_softcapping=config.final_logit_softcapping,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def transformers_nanochat_config(config: GPTConfig) -> NanoChatConfig:
    """Translate our configuration into NanoChat's.

    Raises:
        NanoChatError: with every feature of the model that NanoChat lacks.
    """
    features = {
        "a factor on queries and keys (query_key_scale)": config.query_key_scale != 1.0,
        "windows (layer_windows)": config.layer_windows is not None,
        "value embeddings (value_embedding_layers)": bool(config.value_embedding_layers),
        "residual and initial-embedding factors (residual_scaling)": config.residual_scaling,
        "smear": config.smear,
        "backout": config.backout,
        "rotary angles rounded to bfloat16 (rotary_dtype)": config.rotary_dtype != "float32",
    }
    lacking = [name for name, has in features.items() if has]
    if lacking:
        raise NanoChatError(
            f"transformers' NanoChat is the architecture of 2025, and this model has what it lacks: {', '.join(lacking)}. "
            "Use the model as it is: it loads with AutoModelForCausalLM too."
        )
    return NanoChatConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        final_logit_softcapping=config.final_logit_softcapping,
        rms_norm_eps=NORM_EPSILON,
    )


def rename_tensors(tensors: dict[str, torch.Tensor], *, to_ours: bool = True) -> dict[str, torch.Tensor]:
    """Rename NanoChat's tensors to ours, or ours to NanoChat's.

    >>> list(rename_tensors({"model.layers.0.mlp.fc1.weight": torch.zeros(1)}))
    ['model.layers.0.mlp.up_proj.weight']
    """
    renamed = dict(tensors)
    for theirs, ours in _OUR_NAMES.items():
        old, new = (theirs, ours) if to_ours else (ours, theirs)
        renamed = {name.replace(old, new): tensor for name, tensor in renamed.items()}
    return renamed


def _warn_of_epsilon(epsilon: float, model: GPTForCausalLM) -> None:
    """Say so where another epsilon than nanochat's would be felt: embedding rows so small that their norm changes by over 1e-4."""
    smallest = model.get_input_embeddings().weight.float().square().mean(-1).min().item()
    if abs(epsilon - NORM_EPSILON) > 2e-4 * smallest:
        logger.warning(
            f"This NanoChat has rms_norm_eps {epsilon:g} and very small embeddings. nanochat's epsilon of {NORM_EPSILON:.3g} is used, "
            "so logits differ slightly from transformers' own NanoChat."
        )


__all__ = [
    "NORM_EPSILON",
    "NanoChatError",
    "gpt_config",
    "is_transformers_nanochat",
    "load_transformers_nanochat",
    "load_transformers_nanochat_tokenizer",
    "rename_tensors",
    "transformers_nanochat_config",
]
