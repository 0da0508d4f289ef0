"""Rotary positions, computed from the position ids."""

import torch

from .configuration_gpt import GPTConfig


def rotary_embeddings(position_ids: torch.Tensor, config: GPTConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of shape (batch, length, 1, head_dim / 2).

    Computed from the positions rather than kept in a buffer: exact at every length, and no cast of the model touches them.
    """
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=position_ids.device)
    angles = position_ids[..., None, None].float() * (1.0 / config.rope_theta ** (channels / config.head_dim))
    dtype = getattr(torch, config.rotary_dtype)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (batch, length, heads, head_dim) by the positions; the turn is opposite to Llama's rotate_half."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1).to(states.dtype)
