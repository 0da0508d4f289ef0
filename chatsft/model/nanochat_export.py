"""Write nanochat checkpoints: what nanochat_checkpoint reads, the other way round."""

import json
from pathlib import Path

import torch

from .configuration_gpt import GPTConfig
from .nanochat_checkpoint import VOCABULARY_ROWS, CheckpointError, nanochat_config, nanochat_names, padded_rows, window_pattern

_FIXED_BY_NANOCHAT = (
    "intermediate_size",
    "rope_theta",
    "query_key_scale",
    "final_logit_softcapping",
    "layer_windows",
    "value_embedding_layers",
    "value_embedding_gate_size",
    "value_embedding_gate_range",
    "residual_scaling",
    "smear",
    "smear_gate_size",
    "backout",
    "tie_word_embeddings",
)


def save_nanochat_checkpoint(folder: str | Path, tensors: dict[str, torch.Tensor], meta: dict, step: int) -> None:
    """Write model_<step>.pt and meta_<step>.json."""
    folder = Path(folder)
    torch.save(tensors, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")


def model_fields(config: GPTConfig, original: dict | None = None) -> dict:
    """Return what nanochat's meta file says under model_config.

    Args:
        original: the fields the model had in nanochat. They are kept where they describe the same model, as several window
            patterns can give the same windows.

    Raises:
        CheckpointError: on an architecture that no generation of nanochat has.
    """
    fields = {
        "sequence_len": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_kv_head": config.num_key_value_heads,
        "n_embd": config.hidden_size,
    }
    if config.residual_scaling:
        fields["window_pattern"] = window_pattern(config.layer_windows, config.max_position_embeddings)
    described = nanochat_config(fields, (), Path("config.json")).to_dict()
    ours = config.to_dict()
    differing = [f"{name} is {ours[name]}, nanochat has {described[name]}" for name in _FIXED_BY_NANOCHAT if ours[name] != described[name]]
    if differing:
        raise CheckpointError(f"no generation of nanochat has this architecture: {'; '.join(differing)}.")
    if original is not None and nanochat_config(original, nanochat_names(config), Path("meta")).to_dict() == described:
        return {**original, **{name: value for name, value in fields.items() if name not in original}}
    return fields


def nanochat_tensors(
    config: GPTConfig, state_dict: dict[str, torch.Tensor], dtypes: dict[str, torch.dtype], padding: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Turn weights into nanochat's state dict: its names in its order, its dtypes, its padding rows.

    Args:
        state_dict: under our names, exactly those of the model.
        dtypes: what nanochat stored, by our names; a tensor that is not listed keeps its own.
        padding: rows beyond vocab_size, by our names. Where they are missing and the generation has them, they are zeros.
    """
    tensors = {}
    for name, ours in nanochat_names(config).items():
        tensor = state_dict[ours].to(dtypes.get(ours, state_dict[ours].dtype))
        tensors[name] = _pad_rows(tensor, padding.get(ours), config) if ours.startswith(VOCABULARY_ROWS) else tensor
    return tensors


def _pad_rows(tensor: torch.Tensor, padding: torch.Tensor | None, config: GPTConfig) -> torch.Tensor:
    if padding is None:
        rows = padded_rows(config.vocab_size) if config.residual_scaling else config.vocab_size
        padding = tensor.new_zeros(rows - len(tensor), tensor.shape[1])
    return torch.cat([tensor, padding.to(tensor.dtype)]) if len(padding) else tensor


def sft_meta(fields: dict, step: int, evaluation: dict[str, float], user_config: dict) -> dict:
    """Return the meta that nanochat's own fine-tuning writes: a loss in 2025, bits per byte and the settings in 2026.

    Args:
        evaluation: val_loss and val_bpb, as far as they are known.

    >>> sft_meta({"n_layer": 2}, 20, {"val_loss": 1.5}, {})
    {'step': 20, 'val_loss': 1.5, 'model_config': {'n_layer': 2}}
    """
    is_2026 = "window_pattern" in fields
    measure = "val_bpb" if is_2026 else "val_loss"
    known = {measure: evaluation[measure]} if measure in evaluation else {}
    return {"step": step, **known, "model_config": fields, **({"user_config": user_config} if is_2026 else {})}


__all__ = ["model_fields", "nanochat_tensors", "save_nanochat_checkpoint", "sft_meta"]
