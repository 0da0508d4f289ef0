"""The Triton kernels of caching prompts: what stands between the products and attention, a dozen passes over memory in one."""

import triton
import triton.language as tl

from chatsft.generation.kernels import EPS


@triton.jit
def turn_and_cache(
    query,
    key,
    value,
    cosines,
    sines,
    slots,
    positions,
    ids,
    gates,
    value_table,
    keys,
    values,
    capacity,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    QK_SCALE: tl.constexpr,
    VALUE_EMBEDDING: tl.constexpr,
    GATE_RANGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Turn and norm a token's query and key and gate its embedding into its value, all in place; cache key and value.

    Rounds wherever the model does. query: (tokens, HEADS, D); key and value: (tokens, KV_HEADS, D); cosines and sines: (tokens, D / 2);
    gates: (tokens, KV_HEADS), before the sigmoid; slots, positions and ids: (tokens). One program for each token.
    """
    token = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, BLOCK_HALF)
    cos = tl.load(cosines + token * (D // 2) + half, mask=half < D // 2, other=0.0)[None, :]
    sin = tl.load(sines + token * (D // 2) + half, mask=half < D // 2, other=0.0)[None, :]
    place, inside = _places(HEADS, D, BLOCK_HEADS, BLOCK_HALF)
    a, b = _turned(query + token * HEADS * D + place, inside, cos, sin, D, QK_SCALE)
    tl.store(query + token * HEADS * D + place, a, mask=inside)
    tl.store(query + token * HEADS * D + place + D // 2, b, mask=inside)

    place, inside = _places(KV_HEADS, D, BLOCK_KV, BLOCK_HALF)
    head = tl.arange(0, BLOCK_KV)
    cached = (tl.load(slots + token) * KV_HEADS * capacity + tl.load(positions + token)) * D
    cached += (head * (capacity * D))[:, None] + half[None, :]
    own = token * KV_HEADS * D + place
    a, b = _turned(key + own, inside, cos, sin, D, QK_SCALE)
    tl.store(key + own, a, mask=inside)
    tl.store(key + own + D // 2, b, mask=inside)
    tl.store(keys + cached, a, mask=inside)
    tl.store(keys + cached + D // 2, b, mask=inside)
    a, b = _load(value + own, inside), _load(value + own + D // 2, inside)
    if VALUE_EMBEDDING:
        dtype: tl.constexpr = value.dtype.element_ty
        gate = _rounded(tl.sigmoid(_load(gates + token * KV_HEADS + head, head < KV_HEADS)), dtype)
        gate = _rounded(GATE_RANGE * gate, dtype)[:, None]
        entry = value_table + tl.load(ids + token) * KV_HEADS * D + place
        a = _rounded(a + _rounded(gate * _rounded(_load(entry, inside), dtype), dtype), dtype)
        b = _rounded(b + _rounded(gate * _rounded(_load(entry + D // 2, inside), dtype), dtype), dtype)
        tl.store(value + own, a, mask=inside)
        tl.store(value + own + D // 2, b, mask=inside)
    tl.store(values + cached, a, mask=inside)
    tl.store(values + cached + D // 2, b, mask=inside)


@triton.jit
def _places(HEADS: tl.constexpr, D: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Return where the first halves of a token's heads are, and which of them exist."""
    head, half = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    return head * D + half, (head < HEADS) & (half < D // 2)


@triton.jit
def _turned(states, inside, cos, sin, D: tl.constexpr, QK_SCALE: tl.constexpr):
    """Return both halves of heads turned by the position and normed."""
    dtype: tl.constexpr = states.dtype.element_ty
    a, b = _load(states, inside), _load(states + D // 2, inside)
    first = _rounded(_times(a, cos) + _times(b, sin), cos.dtype)
    second = _rounded(_times(b, cos) - _times(a, sin), cos.dtype)
    first, second = _rounded(first, dtype), _rounded(second, dtype)
    factor = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + EPS)[:, None]
    return _rounded(_rounded(first * factor, dtype) * QK_SCALE, dtype), _rounded(_rounded(second * factor, dtype) * QK_SCALE, dtype)


@triton.jit
def _times(states, table):
    """Multiply with an entry of a rotary table, in whose dtype the model keeps the product."""
    return _rounded(states * table.to(tl.float32), table.dtype)


@triton.jit
def _rounded(states, dtype: tl.constexpr):
    return states.to(dtype).to(tl.float32)


@triton.jit
def _load(states, inside):
    return tl.load(states, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def square_relu(states, size, BLOCK: tl.constexpr):
    """Replace every number by the square of its positive part."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    positive = tl.maximum(tl.load(states + place, mask=place < size).to(tl.float32), 0.0)
    tl.store(states + place, positive * positive, mask=place < size)
