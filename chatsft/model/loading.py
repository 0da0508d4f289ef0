"""One way to a model and its tokenizer, whatever model_name_or_path is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .nanochat_checkpoint import CheckpointError, is_nanochat_checkpoint, load_nanochat_model
from .nanochat_tokenizer import TokenizerFileError, load_nanochat_tokenizer
from .tokenization_gpt import GPTTokenizer


class LoadingError(ValueError):
    """A model or a tokenizer that does not load, or two that do not fit, with what to do."""


def load_model_and_tokenizer(
    name_or_path: str,
    tokenizer_path: str | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, GPTTokenizer]:
    """Load a save_pretrained folder, a Hub id or a nanochat checkpoint folder.

    Args:
        tokenizer_path: a tokenizer of its own; for a nanochat checkpoint the folder of tokenizer.pkl.

    Raises:
        LoadingError: where a part is missing or damaged, or the tokenizer is another one or does not fit the model's vocabulary.
    """
    _check_model_folder(name_or_path)
    tokenizer = load_tokenizer(name_or_path, tokenizer_path)
    with _explained(name_or_path):
        if is_nanochat_checkpoint(name_or_path):
            model = load_nanochat_model(name_or_path, dtype=dtype)
            set_special_tokens(model, tokenizer)
            if attn_implementation is not None:
                model.set_attn_implementation(attn_implementation)
        else:
            model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, attn_implementation=attn_implementation)
    _check_vocabulary(model, tokenizer, name_or_path)
    return model, tokenizer


def load_chat_model(
    checkpoint: str, tokenizer_path: str | None = None, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, GPTTokenizer]:
    """Load a model that is to answer: on its device, in evaluation mode. Takes and raises what `load_model_and_tokenizer` does."""
    model, tokenizer = load_model_and_tokenizer(checkpoint, tokenizer_path, dtype)
    return model.to(device).eval(), tokenizer


def load_tokenizer(name_or_path: str, tokenizer_path: str | None = None) -> GPTTokenizer:
    """Load the tokenizer of a model without the model, or the one in `tokenizer_path`: saved, on the Hub, or nanochat's tokenizer.pkl.

    Raises:
        LoadingError: where there is none, or one that does not know nanochat's chat format.
    """
    if tokenizer_path is None and is_nanochat_checkpoint(name_or_path):
        raise LoadingError(
            f"{name_or_path} is a nanochat checkpoint, which holds no tokenizer. Set tokenizer_path to the folder of tokenizer.pkl."
        )
    name = tokenizer_path or name_or_path
    _check_folder(name, "a folder with a tokenizer or a Hub id")
    with _explained(name):
        tokenizer = _read_tokenizer(name)
    if not isinstance(tokenizer, GPTTokenizer):
        raise LoadingError(
            f"{name} has a {type(tokenizer).__name__}, which does not know nanochat's chat format. "
            "Set tokenizer_path to what chatsft.convert wrote or to the folder of tokenizer.pkl."
        )
    return tokenizer


def _read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    folder = Path(name)
    if (folder / "tokenizer.pkl").is_file():
        return load_nanochat_tokenizer(folder)
    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        raise LoadingError(f"{name} holds no tokenizer: neither tokenizer_config.json nor tokenizer.pkl. Set tokenizer_path to one.")
    return AutoTokenizer.from_pretrained(name)


def set_special_tokens(model: PreTrainedModel, tokenizer: GPTTokenizer) -> None:
    """Tell the model and its generation settings where a conversation begins and where an answer ends."""
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever goes wrong while files are read into one exception type; damaged files raise nearly anything."""
    try:
        yield
    except LoadingError:
        raise
    except (CheckpointError, TokenizerFileError) as error:
        raise LoadingError(str(error)) from error
    except Exception as error:
        raise LoadingError(f"{name} does not load: {error}") from error


def _check_model_folder(name: str) -> None:
    _check_folder(name, "a saved model, a nanochat checkpoint folder or a Hub id")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file() and not is_nanochat_checkpoint(path):
        raise LoadingError(f"{name} holds neither config.json (a saved model) nor model_<step>.pt (a nanochat checkpoint).")


def _check_folder(name: str, wanted: str) -> None:
    """Refuse what can only be meant as a path and is no folder, before the Hub is asked for it."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or path.is_file()
    if is_path and not path.is_dir():
        raise LoadingError(f"{name} is not a folder. Name {wanted}.")


def _check_vocabulary(model: PreTrainedModel, tokenizer: GPTTokenizer, name_or_path: str) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise LoadingError(
            f"The tokenizer has {len(tokenizer)} tokens, but {name_or_path} has embeddings for {rows}. They do not belong together: "
            "set tokenizer_path to the tokenizer the model was trained with."
        )


__all__ = ["LoadingError", "load_chat_model", "load_model_and_tokenizer", "load_tokenizer", "set_special_tokens"]
