"""The Triton kernel of attention in a decoding step: new keys and values are cached, and every row attends to its own.

A head's channels are worked on in two halves, as rotation takes them, so that no channel changes its thread. Queries and keys are normed,
so a score is at most SCALE * D * QK_SCALE**2: its exponential is taken as it is, without the largest score that a softmax subtracts
where it has no such bound, and sums of parts of the keys are simply added.
"""

import triton
import triton.language as tl

from chatsft.generation.kernels import AT_HALTED, AT_LENGTH, AT_TOKEN, EPS, load, norm_factors
from chatsft.generation.products import is_last_to_arrive, let_the_kernel_after_start, wait_for_the_kernel_before

LOG2_E = tl.constexpr(1.4426950408889634)
STAGES = tl.constexpr(3)
"""Blocks of keys that a program works on or has under way, in shared memory but for the first."""


@triton.jit
def attend(
    fields,
    qkv,
    hidden,
    value_gate,
    value_table,
    cosines,
    sines,
    keys,
    values,
    out,
    shares,
    arrived,
    squares,
    M: tl.constexpr,
    CAPACITY: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    QK_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    VALUE_EMBEDDING: tl.constexpr,
    GATE_SIZE: tl.constexpr,
    GATE_RANGE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    TILES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Turn and norm a row's new query and key, cache key and value, and attend; programs: (rows, query heads, splits of the keys)."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = head // (HEADS // KV_HEADS)
    length = tl.load(fields + AT_LENGTH * M + row)  # this and what is cached was written in earlier steps, so need not be waited for
    begin, end = _range(length, tl.load(fields + AT_HALTED * M + row) != 0, split, WINDOW, BLOCK_T, SPLITS)
    cached = (row.to(tl.int64) * KV_HEADS + kv_head) * CAPACITY * D
    keys, values = keys + cached, values + cached
    cos, sin = _angles(cosines, sines, length, D, BLOCK_H)
    new, pair = qkv + row * (HEADS + 2 * KV_HEADS) * D, row * HEADS + head
    q_0, q_1, total, acc_0, acc_1 = _nothing(BLOCK_H, BLOCK_T)
    # the wait is in the loop because a pipelined loop begins to load before its first turn
    for start in tl.range(begin, tl.maximum(end, begin + 1), BLOCK_T, num_stages=STAGES):
        k_0, k_1, v_0, v_1 = _cached(keys, values, start, end, D, BLOCK_H, BLOCK_T)
        if start == begin:
            wait_for_the_kernel_before(EARLY)
            q_0, q_1, key_0, key_1, value_0, value_1 = _read_new(new, cos, sin, head, kv_head, HEADS, KV_HEADS, D, BLOCK_H, QK_SCALE)
            if VALUE_EMBEDDING:
                factor = tl.sum(norm_factors(squares, row + tl.arange(0, 1), tl.full([1], True, tl.int1), M, WIDTH, TILES), 0)
                gate = _value_gate(hidden + row * WIDTH, factor, value_gate + kv_head * GATE_SIZE, GATE_SIZE, GATE_RANGE)
                entry = value_table + (tl.load(fields + AT_TOKEN * M + row).to(tl.int64) * KV_HEADS + kv_head) * D
                value_0, value_1 = _gated(value_0, value_1, gate, entry, new.dtype.element_ty, D, BLOCK_H)
            is_writer = (split == 0) & (head % (HEADS // KV_HEADS) == 0)
            _cache(keys + length * D, values + length * D, key_0, key_1, value_0, value_1, is_writer, D, BLOCK_H)
            q_0, q_1 = q_0 * (SCALE * LOG2_E), q_1 * (SCALE * LOG2_E)
            total, acc_0, acc_1 = _begin(q_0, q_1, key_0, key_1, value_0, value_1, split == 0, BLOCK_T)
        total, acc_0, acc_1 = _fold(total, acc_0, acc_1, q_0, q_1, k_0, k_1, v_0, v_1, start + tl.arange(0, BLOCK_T) < end)
    let_the_kernel_after_start(EARLY)  # not before, or its programs take the places of some that are to attend
    _finish(total, acc_0, acc_1, out + pair * D, shares, arrived, pair, split, M * HEADS, D, BLOCK_H, SPLITS)


@triton.jit
def _angles(cosines, sines, position, D: tl.constexpr, BLOCK_H: tl.constexpr):
    half = tl.arange(0, BLOCK_H)
    return load(cosines + position * (D // 2), half, half < D // 2), load(sines + position * (D // 2), half, half < D // 2)


@triton.jit
def _nothing(BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return a query and sums of nothing yet.

    Every line of a block of keys keeps sums of its own, which meet once, at the end, where the warps have to wait for each other.
    """
    q_0 = tl.zeros([BLOCK_H], tl.float32)
    q_1 = tl.zeros([BLOCK_H], tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc_0 = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    acc_1 = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    return q_0, q_1, total, acc_0, acc_1


@triton.jit
def _cache(keys, values, key_0, key_1, value_0, value_1, is_writer, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """Cache the new key and value, where this program is the one of its head's that does."""
    if is_writer:
        _store_halves(keys, key_0, key_1, D, BLOCK_H)
        _store_halves(values, value_0, value_1, D, BLOCK_H)


@triton.jit
def _begin(q_0, q_1, key_0, key_1, value_0, value_1, is_first, BLOCK_T: tl.constexpr):
    """Return the sums over the new key, which the first line of the first split takes."""
    is_mine = (tl.arange(0, BLOCK_T) == 0) & is_first
    total = tl.where(is_mine, tl.exp2(tl.sum(q_0 * key_0 + q_1 * key_1, 0)), 0.0)
    return total, total[:, None] * value_0[None, :], total[:, None] * value_1[None, :]


@triton.jit
def _fold(total, acc_0, acc_1, q_0, q_1, k_0, k_1, v_0, v_1, is_key):
    """Add a block of keys and values to the sums of its lines."""
    scores = tl.sum(k_0.to(tl.float32) * q_0[None, :] + k_1.to(tl.float32) * q_1[None, :], 1)
    weights = tl.where(is_key, tl.exp2(scores), 0.0)
    acc_0 += weights[:, None] * v_0.to(tl.float32)
    acc_1 += weights[:, None] * v_1.to(tl.float32)
    return total + weights, acc_0, acc_1


@triton.jit
def _finish(
    total,
    acc_0,
    acc_1,
    out,
    shares,
    arrived,
    pair,
    split,
    PAIRS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Store a head's output: of the only split at once, else of all of them by the last that arrives."""
    total, acc_0, acc_1 = tl.sum(total, 0), tl.sum(acc_0, 0), tl.sum(acc_1, 0)
    if SPLITS > 1:
        finishes = _share(total, acc_0, acc_1, shares, arrived, pair, split, PAIRS, BLOCK_H, SPLITS)
        if finishes:
            total, acc_0, acc_1 = _put_together(shares, pair, PAIRS, BLOCK_H, SPLITS)
            _store_halves(out, acc_0 / total, acc_1 / total, D, BLOCK_H)
    else:
        _store_halves(out, acc_0 / total, acc_1 / total, D, BLOCK_H)


@triton.jit
def _range(length, is_halted, split, WINDOW: tl.constexpr, BLOCK_T: tl.constexpr, SPLITS: tl.constexpr):
    """Return the range of cached keys that a split attends to; a halted row's output is never used, so it attends to none."""
    first = tl.maximum(length + 1 - WINDOW, 0)
    count = tl.where(is_halted, 0, length - first)
    size = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK_T) * BLOCK_T
    begin = first + split * size
    return begin, tl.minimum(begin + size, first + count)


@triton.jit
def _cached(keys, values, start, end, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr):
    """Load a block of cached keys and values as they are stored, each in two halves of its channels."""
    t, half = start + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
    place, inside = t[:, None] * D + half[None, :], (t < end)[:, None] & (half < D // 2)[None, :]
    k_0, k_1 = tl.load(keys + place, mask=inside, other=0.0), tl.load(keys + place + D // 2, mask=inside, other=0.0)
    v_0, v_1 = tl.load(values + place, mask=inside, other=0.0), tl.load(values + place + D // 2, mask=inside, other=0.0)
    return k_0, k_1, v_0, v_1


@triton.jit
def _read_new(
    new,
    cos,
    sin,
    head,
    kv_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    QK_SCALE: tl.constexpr,
):
    """Return the halves of the new query, key and value; all are asked for before any is waited for."""
    q_0, q_1 = _halves(new + head * D, D, BLOCK_H)
    k_0, k_1 = _halves(new + (HEADS + kv_head) * D, D, BLOCK_H)
    v_0, v_1 = _halves(new + (HEADS + KV_HEADS + kv_head) * D, D, BLOCK_H)
    q_0, q_1 = _turned(q_0, q_1, cos, sin, new.dtype.element_ty, D, QK_SCALE)
    k_0, k_1 = _turned(k_0, k_1, cos, sin, new.dtype.element_ty, D, QK_SCALE)
    return q_0, q_1, k_0, k_1, v_0, v_1


@triton.jit
def _turned(first, second, cos, sin, dtype: tl.constexpr, D: tl.constexpr, QK_SCALE: tl.constexpr):
    """Return the two halves of a head turned by the position and normed, rounded where the model rounds."""
    a, b = (first * cos + second * sin).to(dtype).to(tl.float32), (second * cos - first * sin).to(dtype).to(tl.float32)
    factor = tl.rsqrt(tl.sum(a * a + b * b, 0) / D + EPS)
    a, b = (a * factor).to(dtype).to(tl.float32), (b * factor).to(dtype).to(tl.float32)
    return (a * QK_SCALE).to(dtype).to(tl.float32), (b * QK_SCALE).to(dtype).to(tl.float32)


@triton.jit
def _value_gate(hidden, factor, weight, GATE_SIZE: tl.constexpr, GATE_RANGE: tl.constexpr):
    """Return how much of its token's embedding a value gets, from the first channels of the layer's normed input."""
    channel = tl.arange(0, triton.next_power_of_2(GATE_SIZE))
    x = (load(hidden, channel, channel < GATE_SIZE) * factor).to(hidden.dtype.element_ty).to(tl.float32)
    return GATE_RANGE * tl.sigmoid(tl.sum(load(weight, channel, channel < GATE_SIZE) * x, 0))


@triton.jit
def _gated(v_0, v_1, gate, entry, dtype: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """Add a share of the token's embedding to a value."""
    more_0, more_1 = _halves(entry, D, BLOCK_H)
    return (v_0 + gate * more_0).to(dtype).to(tl.float32), (v_1 + gate * more_1).to(dtype).to(tl.float32)


@triton.jit
def _share(total, acc_0, acc_1, shares, arrived, pair, split, PAIRS: tl.constexpr, BLOCK_H: tl.constexpr, SPLITS: tl.constexpr):
    """Leave the sums over a split of the keys, all values first and then all totals; say whether this is a head's last."""
    half, mine = tl.arange(0, BLOCK_H), pair * SPLITS + split
    tl.store(shares + mine * 2 * BLOCK_H + half, acc_0)
    tl.store(shares + mine * 2 * BLOCK_H + BLOCK_H + half, acc_1)
    tl.store(shares + PAIRS * SPLITS * 2 * BLOCK_H + mine, total)
    return is_last_to_arrive(arrived + pair, SPLITS)


@triton.jit
def _put_together(shares, pair, PAIRS: tl.constexpr, BLOCK_H: tl.constexpr, SPLITS: tl.constexpr):
    """Return a head's sums over all splits, added up in one order whoever came last."""
    part = pair * SPLITS + tl.arange(0, SPLITS)
    place = shares + part[:, None] * 2 * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    totals = tl.load(shares + PAIRS * SPLITS * 2 * BLOCK_H + part, cache_modifier=".cg")
    first, second = tl.load(place, cache_modifier=".cg"), tl.load(place + BLOCK_H, cache_modifier=".cg")
    return tl.sum(totals, 0), tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _halves(states, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """Load the two halves of a head's channels."""
    half = tl.arange(0, BLOCK_H)
    return load(states, half, half < D // 2), load(states + D // 2, half, half < D // 2)


@triton.jit
def _store_halves(out, first, second, D: tl.constexpr, BLOCK_H: tl.constexpr):
    half = tl.arange(0, BLOCK_H)
    tl.store(out + half, first, mask=half < D // 2)
    tl.store(out + D // 2 + half, second, mask=half < D // 2)
