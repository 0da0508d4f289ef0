"""What nanochat kept beside the weights of a model, carried along so that the model goes back to nanochat without a loss."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chatsft.model.loading import find_file
from chatsft.model.nanochat_checkpoint import is_nanochat_checkpoint, load_nanochat_checkpoint
from chatsft.model.weights_index import save_weights_index

EXTRA_FILE = "nanochat_extra.safetensors"
"""What nanochat keeps and the model has no place for: padding rows, original dtypes, the meta file, the step."""


class OriginError(ValueError):
    """An extra file that is missing or damaged, with what to do."""


class Origin(NamedTuple):
    """What nanochat had beside the weights: see `NanochatCheckpoint`; dtypes by our names."""

    padding: dict[str, torch.Tensor]
    dtypes: dict[str, torch.dtype]
    meta: dict | None
    step: int


NOTHING = Origin({}, {}, None, 0)


def find_origin(name_or_path: str | Path) -> Origin | None:
    """Read what nanochat kept beside a model: a nanochat checkpoint, a converted folder or its Hub id; None where there is nothing."""
    if is_nanochat_checkpoint(name_or_path):
        checkpoint = load_nanochat_checkpoint(name_or_path)
        dtypes = {name: tensor.dtype for name, tensor in checkpoint.state_dict.items()}
        return Origin(checkpoint.padding, dtypes, checkpoint.meta, checkpoint.step)
    path = find_file(name_or_path, EXTRA_FILE)
    return None if path is None else read_extra(path)


def read_extra(path: Path) -> Origin:
    """Read an extra file.

    Raises:
        OriginError: where it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, padding = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        dtypes = {name: _torch_dtype(dtype) for name, dtype in json.loads(metadata["dtypes"]).items()}
        meta, step = json.loads(metadata["meta"]), int(metadata["step"])
        return Origin(padding, dtypes, {**meta, "model_config": {**meta["model_config"]}}, step)
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:  # damaged metadata
        raise OriginError(f"{path} cannot be read ({error}). Copy it again, or remove it: padding rows are zeros then.") from error


def save_origin(origin: Origin, folder: str | Path) -> None:
    """Write the extra file beside a model's weights, which from_pretrained never reads, and the list of weights that others then need."""
    dtypes = {name: str(dtype).removeprefix("torch.") for name, dtype in origin.dtypes.items()}
    metadata = {"format": "pt", "step": str(origin.step), "meta": json.dumps(origin.meta), "dtypes": json.dumps(dtypes)}
    save_file(origin.padding, Path(folder) / EXTRA_FILE, metadata=metadata)
    save_weights_index(folder)


def _torch_dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"unknown dtype {name!r}")
    return dtypes[name]
