"""Read a save_pretrained folder as it is stored: nothing cast, nothing filled in, every part checked against the others."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import NanoChatConfig
from transformers.modeling_utils import load_state_dict

from .configuration_gpt import GPTConfig
from .configuration_gpt_vision import GPTVisionConfig
from .modeling_gpt import GPTForCausalLM
from .nanochat_checkpoint import is_nanochat_checkpoint
from .nanochat_tokenizer import load_encoding
from .transformers_nanochat import gpt_config, rename_tensors


class SavedModelError(ValueError):
    """A saved model that cannot be read or has no form in nanochat, with what to do."""


class SavedModel(NamedTuple):
    """A save_pretrained folder in our terms: weights under our names in the dtypes stored, and nanochat's form of its tokenizer."""

    config: GPTConfig
    state_dict: dict[str, torch.Tensor]
    encoding: dict


def read_saved_model(folder: Path) -> SavedModel:
    """Read a save_pretrained folder of our model or of transformers' NanoChat, and check that its parts fit together."""
    config, state_dict = load_config(folder), read_weights(folder)
    if isinstance(config, NanoChatConfig):
        config, state_dict = gpt_config(config), rename_tensors(state_dict)
    _check_weights(config, state_dict, folder)
    encoding = load_encoding(folder / "tokenizer.json")
    num_tokens = len(encoding["mergeable_ranks"]) + len(encoding["special_tokens"])
    if num_tokens != config.vocab_size:
        raise SavedModelError(f"the tokenizer in {folder} has {num_tokens} tokens, but the model has a vocabulary of {config.vocab_size}.")
    return SavedModel(config, state_dict, encoding)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of model.safetensors, or of the files that model.safetensors.index.json lists, as they are stored."""
    tensors = {}
    for name in _weight_files(folder):
        if not (folder / name).is_file():
            raise SavedModelError(f"{folder} holds no {name}. Name a folder that save_pretrained wrote, adapters merged.")
        try:
            tensors |= load_state_dict(folder / name)
        except Exception as error:  # a damaged file raises nearly anything
            raise SavedModelError(f"{folder / name} cannot be read ({error}): it is damaged or cut short. Copy it again.") from error
    return tensors


def _weight_files(folder: Path) -> list[str]:
    path = folder / "model.safetensors.index.json"
    index = read_json(path)
    if index is None:
        return ["model.safetensors"]
    if not isinstance(index.get("weight_map"), dict):
        raise SavedModelError(f"{path} has no weight_map, so save_pretrained did not write it. Copy it again.")
    return sorted(set(index["weight_map"].values()))


def load_config(folder: Path) -> GPTConfig | NanoChatConfig:
    """Read config.json and refuse every other architecture."""
    if not folder.is_dir():
        raise SavedModelError(f"{folder} is not a folder. Name a folder that save_pretrained wrote.")
    fields = read_json(folder / "config.json")
    if fields is None:
        hint = " It is a nanochat checkpoint: chatsft.convert to-hf reads it." if is_nanochat_checkpoint(folder) else ""
        if (folder / "adapter_config.json").is_file():
            hint = " It is an adapter: train with merge_adapter=true, and convert its merged/."
        raise SavedModelError(f"{folder} holds no config.json, so it is no saved model.{hint}")
    classes = {kind.model_type: kind for kind in (GPTConfig, NanoChatConfig)}
    model_type = fields.get("model_type")
    if model_type == GPTVisionConfig.model_type:
        raise SavedModelError(f"{folder} holds a model that reads images: nanochat has no place for its encoder, projector and tokens.")
    if model_type not in classes:
        raise SavedModelError(
            f"{folder} holds a model of type {model_type}, which has no form in nanochat. Only {GPTConfig.model_type} (this package) "
            f"and {NanoChatConfig.model_type} (transformers' NanoChat) can be converted."
        )
    try:
        return classes[model_type].from_pretrained(folder)
    except Exception as error:  # the fields are checked one by one, each by an exception of its own
        raise SavedModelError(f"{folder / 'config.json'} describes a model that cannot be: {error}") from error


def read_json(path: Path) -> dict | None:
    """Read a JSON object; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SavedModelError(f"{path} is not JSON ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise SavedModelError(f"{path} holds a {type(content).__name__}, expected a JSON object. Copy it again.")
    return content


def _check_weights(config: GPTConfig, state_dict: dict[str, torch.Tensor], folder: Path) -> None:
    expected = _expected_shapes(config, folder)
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    for problem, names in (("lack", expected.keys() - found.keys()), ("have unknown", found.keys() - expected.keys())):
        if names:
            raise SavedModelError(f"the weights in {folder} {problem} {', '.join(sorted(names)[:10])}, against what config.json describes.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise SavedModelError(f"the weights in {folder}: {name} has shape {found[name]}, but config.json describes {shape}.")


def _expected_shapes(config: GPTConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            return {name: tuple(parameter.shape) for name, parameter in GPTForCausalLM(config).named_parameters()}
    except Exception as error:  # a field of another type is found where it is used
        raise SavedModelError(f"{folder / 'config.json'} describes a model that cannot be: {error}") from error


__all__ = ["SavedModel", "SavedModelError", "load_config", "read_json", "read_saved_model", "read_weights"]
