"""The list of a model's weight files."""

import json
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def save_weights_index(folder: str | Path) -> None:
    """List the tensors of model.safetensors as a sharded model does.

    vLLM and SGLang load every .safetensors file of a folder that has no such list, nanochat_extra.safetensors too. transformers
    looks at model.safetensors first and does not mind. A sharded model has its list already.
    """
    folder = Path(folder)
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        return
    with open(folder / SAFE_WEIGHTS_NAME, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    index = {
        "metadata": {"total_size": sum(end - start for start, end in tensors.values())},
        "weight_map": dict.fromkeys(sorted(tensors), SAFE_WEIGHTS_NAME),
    }
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
