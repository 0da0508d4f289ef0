"""Variable-length attention: packed conversations in one flat row, each attending to itself only.

Registered as attn_implementation "varlen", which runs everywhere, and "varlen_fa4", which runs on FlashAttention 4 where that can.
Without sequence bounds (generation, padded batches) both are transformers' SDPA.
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .flash_attention import flash_4_varlen, torch_varlen

VARLEN = ("varlen", "varlen_fa4")
"""The attentions that need no mask where the bounds of the conversations are given."""


def varlen_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    kernel: Callable = torch_varlen,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attend within the segments bounded by cu_seq_lens_q.

    Args:
        query: (1, heads, tokens, head_dim); key and value: (1, key/value heads, tokens, head_dim).
        sliding_window: keys a query sees, itself included.
        cu_seq_lens_q: (segments + 1,) int32 bounds; a repeated last bound is an empty segment.
        max_length_q: longest segment the bounds may hold.
        kernel: what computes it on a GPU in half precision.

    Returns:
        (1, tokens, heads, head_dim), and None for the weights, which are never formed.

    Raises:
        ValueError: on what other models' attention may ask for and this one cannot do: dropout, softcap, sinks (s_aux).
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, softcap=softcap, s_aux=s_aux, **kwargs
        )
    if dropout or softcap is not None or s_aux is not None:
        raise ValueError('The attention "varlen" does no dropout, softcapping or sinks. Choose another attn_implementation.')
    device = query.device.type
    if torch.is_autocast_enabled(device):  # other models' rotary embedding gives float32 queries and keys beside bfloat16 values
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))  # an index copies in its backward
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        if key.shape[1] != query.shape[1]:  # repeating once would copy
            key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
        scale, window = scaling or query.shape[-1] ** -0.5, -1 if sliding_window is None else sliding_window - 1
        output = kernel(query, key, value, cu_seq_lens_q, max_length_q, scale, window)
    else:
        output = _segment_by_segment(query, key, value, cu_seq_lens_q.tolist(), scaling, sliding_window)
    return output.unsqueeze(0), None


def _segment_by_segment(query, key, value, bounds, scaling, sliding_window) -> torch.Tensor:
    """Run SDPA on each segment in turn: exact, and no work for pairs of tokens in different segments."""
    outputs = []
    for start, end in itertools.pairwise(bounds):
        if start == end:
            continue
        q, k, v = (states[start:end].transpose(0, 1)[None] for states in (query, key, value))
        window_bites = sliding_window is not None and end - start > sliding_window
        mask = _causal_window(end - start, sliding_window, query.device) if window_bites else None
        outputs.append(
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True)[0].transpose(
                0, 1
            )
        )
    return torch.cat(outputs)


def _causal_window(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return the (length, length) mask in which each query sees itself and the window - 1 keys before it.

    >>> _causal_window(3, 2, "cpu").int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def eager_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend by plain matrix products, which is the one way that returns the weights."""
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("varlen", varlen_attention_forward)
AttentionInterface.register("varlen_fa4", partial(varlen_attention_forward, kernel=flash_4_varlen))
for name in VARLEN:
    AttentionMaskInterface.register(name, sdpa_mask)
