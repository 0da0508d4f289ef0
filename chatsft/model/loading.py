"""One way to a model and its tokenizer, whatever model_name_or_path is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils.hub import cached_file, cached_files

from .fingerprint import weights_fingerprint
from .modeling_gpt import GPTForCausalLM
from .nanochat_checkpoint import CheckpointError, is_nanochat_checkpoint, load_nanochat_model
from .nanochat_tokenizer import TokenizerFileError, load_nanochat_tokenizer
from .tokenization_gpt import GPTTokenizer
from .transformers_nanochat import is_transformers_nanochat, load_transformers_nanochat, load_transformers_nanochat_tokenizer

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_RECORD = "base_model.json"
"""Beside an adapter: the fingerprint of the weights it was trained on."""


class LoadingError(ValueError):
    """A model or a tokenizer that does not load, or two that do not fit, with what to do."""


def load_model_and_tokenizer(
    name_or_path: str,
    tokenizer_path: str | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **options,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load any causal language model for training: a save_pretrained folder, a Hub id, a nanochat checkpoint folder or an adapter.

    A model of chatsft comes with its GPTTokenizer, any other one with whatever tokenizer it has. transformers' own NanoChat with nanochat's
    tokenizer becomes a model of chatsft.

    Args:
        tokenizer_path: a tokenizer of its own; for a nanochat checkpoint the folder of tokenizer.pkl.
        options: more for from_pretrained, as quantization_config.

    Raises:
        LoadingError: where a part is missing or damaged, or the tokenizer is another one or does not fit the model's vocabulary.
    """
    _check_model_folder(name_or_path)
    tokenizer = load_any_tokenizer(name_or_path, tokenizer_path)
    with _explained(name_or_path):
        model = _load_model(name_or_path, tokenizer, dtype, attn_implementation, **options)
    if isinstance(model, GPTForCausalLM):
        _check_chat_format(tokenizer, tokenizer_path or name_or_path)
    _check_vocabulary(model, tokenizer, name_or_path)
    return model, tokenizer


def load_chat_model(
    checkpoint: str, tokenizer_path: str | None = None, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, GPTTokenizer]:
    """Load a model that is to answer in nanochat's format: on its device, in evaluation mode, with a GPTTokenizer or not at all."""
    _check_model_folder(checkpoint)
    load_tokenizer(checkpoint, tokenizer_path)
    model, tokenizer = load_model_and_tokenizer(checkpoint, tokenizer_path, dtype)
    return model.to(device).eval(), tokenizer


def _load_model(name: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, attn_implementation: str | None, **options):
    if is_adapter(name):
        return _load_adapter(name, tokenizer, dtype, attn_implementation, **options)
    load = load_nanochat_model if is_nanochat_checkpoint(name) else None
    if load is None and isinstance(tokenizer, GPTTokenizer) and is_transformers_nanochat(name):
        load = load_transformers_nanochat
    if load is None:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation=attn_implementation, **options)
    if options:
        raise LoadingError(f"{name} is a nanochat checkpoint, which takes no {', '.join(options)}. Convert it first with chatsft.convert.")
    model = load(name, dtype=dtype)
    set_special_tokens(model, tokenizer)
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    return model


def is_adapter(name: str) -> bool:
    """Tell whether a folder or a repository on the Hub holds an adapter and no model."""
    return find_file(name, ADAPTER_CONFIG) is not None and find_file(name, "config.json") is None


def find_file(name: str | Path, file: str) -> Path | None:
    """Find a file of a folder or of a repository on the Hub; None where it is not there, or cannot be asked for."""
    with suppress(OSError):
        found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)
    return None


def _load_adapter(name: str, tokenizer: PreTrainedTokenizerBase, *options, **more) -> PreTrainedModel:
    """Load the base that an adapter names, see that it is the one the adapter was trained on, and put the adapter on it."""
    base = _read_entry(name, ADAPTER_CONFIG, "base_model_name_or_path")
    try:
        _check_model_folder(base)
        model = _load_model(base, tokenizer, *options, **more)
    except Exception as error:
        raise LoadingError(
            f"{name} is an adapter of {base}, which does not load: {error} Name the base in adapter_config.json, base_model_name_or_path."
        ) from error
    if find_file(name, BASE_RECORD) and _read_entry(name, BASE_RECORD, "weights_fingerprint") != weights_fingerprint(model):
        raise LoadingError(
            f"{name} is an adapter of another base: {base} has other weights than the model it was trained on. "
            "Name that model in adapter_config.json, base_model_name_or_path."
        )
    weights = find_file(name, ADAPTER_WEIGHTS)
    if weights is None:
        raise LoadingError(f"{name} holds no {ADAPTER_WEIGHTS}. Copy it again.")
    try:
        loading = model.load_adapter(str(weights.parent), weight_mapping=_adapter_renamings(model))
    except RuntimeError as error:  # of other shapes
        raise LoadingError(f"{name} does not fit {base}, which it names as its base: it belongs to another one, or is damaged.") from error
    for problem, keys in (("lacks", loading.missing_keys), ("has, beyond its base,", loading.unexpected_keys)):
        if keys:
            raise LoadingError(f"{name} {problem} {min(keys)} and {len(keys) - 1} more weights. Load the merged model instead.")
    return model


def _read_entry(name: str, file: str, key: str) -> str:
    """Read one entry of a JSON file beside an adapter."""
    path = find_file(name, file)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError) as error:
        raise LoadingError(f"{path} is damaged: it is no JSON object with {key}. Copy it again.") from error
    if not isinstance(value, str):
        raise LoadingError(f"{path}: {key} is {value!r}, expected a name.")
    return value


def _adapter_renamings(model: PreTrainedModel) -> list:
    """Return transformers' own renamings and the one it lacks: the magnitudes of DoRA, which load_adapter would leave at random."""
    return [*get_model_conversion_mapping(model), WeightRenaming(r"(lora_magnitude_vector\.default)$", r"\1.weight")]


def load_tokenizer(name_or_path: str, tokenizer_path: str | None = None) -> GPTTokenizer:
    """Load the tokenizer of a model without the model, or the one in `tokenizer_path`: saved, on the Hub, or nanochat's tokenizer.pkl.

    Raises:
        LoadingError: where there is none, or one that does not know nanochat's chat format.
    """
    tokenizer = load_any_tokenizer(name_or_path, tokenizer_path)
    _check_chat_format(tokenizer, tokenizer_path or name_or_path)
    return tokenizer


def load_any_tokenizer(name_or_path: str, tokenizer_path: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model as `load_tokenizer` does, whatever its format."""
    has_pickle = (Path(name_or_path) / "tokenizer.pkl").is_file()
    if tokenizer_path is None and is_nanochat_checkpoint(name_or_path) and not has_pickle:
        raise LoadingError(
            f"{name_or_path} is a nanochat checkpoint, which holds no tokenizer. Set tokenizer_path to the folder of tokenizer.pkl."
        )
    name = tokenizer_path or name_or_path
    _check_folder(name, "a folder with a tokenizer or a Hub id")
    with _explained(name):
        return _read_tokenizer(name)


def _check_chat_format(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not isinstance(tokenizer, GPTTokenizer):
        raise LoadingError(
            f"{name} has a {type(tokenizer).__name__}, which does not know nanochat's chat format, that of chat. "
            "Of a nanochat model, set tokenizer_path to the folder of tokenizer.pkl; another model is for transformers chat."
        )


def _read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    folder = Path(name)
    if (folder / "tokenizer.pkl").is_file():
        return load_nanochat_tokenizer(folder)
    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file():
        raise LoadingError(f"{name} holds no tokenizer: neither tokenizer_config.json nor tokenizer.pkl. Set tokenizer_path to one.")
    files = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
    if not folder.is_dir() and not cached_files(name, files, _raise_exceptions_for_missing_entries=False):
        if find_file(name, "tokenizer.pkl"):
            raise LoadingError(
                f"{name} holds nanochat's own files, which have to lie in a folder. hf download {name} --local-dir FOLDER, and name FOLDER."
            )
        raise LoadingError(
            f"{name} does not load: no folder here, and no tokenizer on the Hub or in its cache (none of {', '.join(files)}). "
            "Check the name and the network, or set tokenizer_path."
        )
    if is_transformers_nanochat(name):
        with suppress(TokenizerFileError):  # another tokenizer than nanochat's stays what it is
            return load_transformers_nanochat_tokenizer(name)
    config = PreTrainedConfig() if is_adapter(name) else None  # an adapter has none, and transformers 5.17 would look for it on the Hub
    return AutoTokenizer.from_pretrained(name, config=config)


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
    if path.is_dir() and not (path / "config.json").is_file() and not is_nanochat_checkpoint(path) and not is_adapter(name):
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


__all__ = [
    "BASE_RECORD",
    "LoadingError",
    "find_file",
    "is_adapter",
    "load_any_tokenizer",
    "load_chat_model",
    "load_model_and_tokenizer",
    "load_tokenizer",
    "set_special_tokens",
]
