"""Where each token stands: its position in its conversation, the padding around it, and the ids that a cache carries on."""

import torch
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer


def is_padding_mask(attention_mask: torch.Tensor | dict | None) -> bool:
    """Tell a 2D mask, which says what tokens are real, from masks that are already built."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def count_positions(
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | dict | None = None,
    past_key_values: Cache | None = None,
    bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Count positions from the cached length, from the first real token of a 2D mask, or in each segment of a packed row.

    >>> count_positions(torch.zeros(1, 5, 8), bounds=torch.tensor([0, 2, 5, 5])).tolist()
    [[0, 1, 0, 1, 2]]
    """
    length = hidden_states.shape[1]
    if is_padding_mask(attention_mask):
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    tokens = torch.arange(length, device=hidden_states.device)
    if bounds is not None:
        return (tokens - bounds[torch.searchsorted(bounds.long(), tokens, right=True) - 1])[None]
    return (tokens + (0 if past_key_values is None else past_key_values.get_seq_length()))[None]


def restarts(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | dict | None) -> bool:
    """Tell whether a position 0 follows a real token, that is, whether rows hold more than one conversation."""
    if position_ids is None or position_ids.shape[-1] == 1 or torch.compiler.is_compiling():
        return False
    restart = position_ids[:, 1:] == 0
    if is_padding_mask(attention_mask):
        real = attention_mask[:, -position_ids.shape[-1] :].bool()
        restart = restart & real[:, :-1] & real[:, 1:]
    elif attention_mask is not None:
        return False
    return bool(restart.any())


def exchange_last_ids(cache: Cache, input_ids: torch.Tensor, attention_mask: torch.Tensor | dict | None, layer_idx: int):
    """Return the last cached id of each row, (batch, 1), None from an empty cache, and append input_ids to the cache.

    The ids are kept as one more cache layer, so that reset, reorder, crop, batch selection and offloading follow the keys. At
    padding the last real id is repeated, which lets a right-padded row go on.
    """
    if len(cache.layers) == layer_idx:
        static = isinstance(cache.layers[0], StaticLayer)
        cache.layers.append(StaticLayer(max_cache_len=cache.layers[0].max_cache_len) if static else DynamicLayer())
    if is_padding_mask(attention_mask):
        real = attention_mask[:, -input_ids.shape[1] :].long()
        input_ids = input_ids.gather(1, (real * torch.arange(input_ids.shape[1], device=input_ids.device)).cummax(-1).values)
    seen = cache.get_seq_length(layer_idx)
    last = (seen - 1).clamp(min=0).view(1) if isinstance(seen, torch.Tensor) else seen - 1  # before update moves seen in place
    ids = cache.update(input_ids[:, None, :, None], input_ids[:, None, :, None], layer_idx)[0][:, 0, :, 0]
    if isinstance(last, torch.Tensor):
        return ids.index_select(1, last)
    return ids[:, last : last + 1] if seen else None


__all__ = ["count_positions", "exchange_last_ids", "is_padding_mask", "restarts"]
