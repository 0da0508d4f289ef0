"""What a run runs on: versions and hardware, without anything that names a person or a place."""

import importlib.metadata
import json
import platform
from pathlib import Path

import psutil
import torch

ENVIRONMENT_FILE = "environment.json"
GIB = 2**30
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "trl", "peft", "flash-attn-4", "triton")


def describe_environment(num_processes: int = 1, attention: str | None = None) -> dict:
    """Return what an output depends on beside the recipe.

    Args:
        num_processes: of the run.
        attention: the attention the model runs with.
    """
    return {
        "chatsft": installed_version("chatsft"),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpus": [describe_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "num_processes": num_processes,
        "attention": attention,
    }


def describe_gpu(index: int) -> dict:
    """Return name, memory and generation (compute capability) of a GPU."""
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "memory_gib": round(properties.total_memory / GIB, 1), "capability": capability}


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed.

    >>> installed_version("no-such-package")
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save_environment(folder: str | Path, environment: dict) -> None:
    (Path(folder) / ENVIRONMENT_FILE).write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
