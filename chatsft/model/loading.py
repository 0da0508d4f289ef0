"""One way to a model and its tokenizer, whatever model_name_or_path is."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .nanochat_checkpoint import is_nanochat_checkpoint, load_nanochat_model
from .nanochat_tokenizer import load_nanochat_tokenizer


def load_model_and_tokenizer(
    name_or_path: str,
    tokenizer_path: str | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a save_pretrained folder, a Hub id or a nanochat checkpoint folder.

    Args:
        tokenizer_path: a tokenizer of its own; for a nanochat checkpoint the folder of tokenizer.pkl.

    Raises:
        ValueError: where a tokenizer is missing or does not fit the model's vocabulary.
    """
    if is_nanochat_checkpoint(name_or_path):
        model, tokenizer = _load_nanochat(name_or_path, tokenizer_path, dtype)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
    else:
        _check_exists(name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path or name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, attn_implementation=attn_implementation)
    _check_vocabulary(model, tokenizer, name_or_path)
    return model, tokenizer


def _load_nanochat(folder: str, tokenizer_path: str | None, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if tokenizer_path is None:
        raise ValueError(f"{folder} is a nanochat checkpoint, which holds no tokenizer. Set tokenizer_path to the folder of tokenizer.pkl.")
    tokenizer, model = load_nanochat_tokenizer(tokenizer_path), load_nanochat_model(folder, dtype=dtype)
    set_special_tokens(model, tokenizer)
    return model, tokenizer


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model and its generation settings where a conversation begins and where an answer ends."""
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )


def _check_exists(name_or_path: str) -> None:
    path = Path(name_or_path)
    looks_local = path.is_absolute() or name_or_path.startswith((".", "~")) or len(path.parts) > 2
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(f"{name_or_path} holds neither config.json (a saved model) nor model_<step>.pt (a nanochat checkpoint).")
    if looks_local and not path.is_dir():
        raise ValueError(
            f"model_name_or_path {name_or_path} is not a folder. Name a saved model, a nanochat checkpoint folder or a Hub id."
        )


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but {name_or_path} has embeddings for {rows}. They do not belong together: "
            "set tokenizer_path to the tokenizer the model was trained with."
        )


__all__ = ["load_model_and_tokenizer", "set_special_tokens"]
