"""A short name for the weights of a model, to tell whether an adapter meets the base it was trained on."""

import hashlib

import torch
from torch import nn

NUM_VALUES = 16
"""Values of each tensor that are looked at, evenly spaced: every training step changes nearly all of them."""


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """Hash names, shapes and some values of all parameters, rounded to bfloat16, so that every dtype it is loaded in gives the same.

    >>> weights_fingerprint(nn.Linear(2, 2)) == weights_fingerprint(nn.Linear(2, 2))
    False
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.flatten()
        places = torch.linspace(0, len(values) - 1, min(NUM_VALUES, len(values)), dtype=torch.float64).round().long()
        picked = values[places.to(values.device)]
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        digest.update(picked.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


__all__ = ["weights_fingerprint"]
