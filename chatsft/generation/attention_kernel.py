"""The Triton kernel of attention in a decoding step: new keys and values are cached, and every row attends to its own.

A head's channels are worked on in two halves, as rotation takes them, so that no channel changes its thread.
"""

import triton
import triton.language as tl

from chatsft.generation.kernels import AT_HALTED, AT_LENGTH, AT_TOKEN, EPS, load, norm_factors, wait_for_the_kernel_before

LEAST = tl.constexpr(-1e30)
"""A score below all others that, unlike infinity, can be subtracted from itself."""


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
    partial,
    partial_max,
    partial_total,
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
    cached = (row.to(tl.int64) * KV_HEADS + kv_head) * CAPACITY * D
    begin, end = _share(length, tl.load(fields + AT_HALTED * M + row) != 0, split, WINDOW, BLOCK_T, SPLITS)
    block = _cached(keys + cached, values + cached, begin, end, D, BLOCK_H, BLOCK_T)
    wait_for_the_kernel_before(EARLY)
    new = qkv + row * (HEADS + 2 * KV_HEADS) * D
    q_0, q_1 = _turned(new + head * D, cosines, sines, length, D, BLOCK_H, QK_SCALE)
    q_0, q_1 = SCALE * q_0, SCALE * q_1
    m, total, acc_0, acc_1 = _attend_cached(q_0, q_1, block, keys + cached, values + cached, begin, end, D, BLOCK_H, BLOCK_T)
    if split == 0:  # the new key and value
        k_0, k_1 = _turned(new + (HEADS + kv_head) * D, cosines, sines, length, D, BLOCK_H, QK_SCALE)
        v_0, v_1 = _halves(new + (HEADS + KV_HEADS + kv_head) * D, D, BLOCK_H)
        if VALUE_EMBEDDING:
            factor = tl.sum(norm_factors(squares, row + tl.arange(0, 1), tl.full([1], True, tl.int1), M, WIDTH, TILES), 0)
            gate = _value_gate(hidden + row * WIDTH, factor, value_gate + kv_head * GATE_SIZE, GATE_SIZE, GATE_RANGE)
            entry = value_table + (tl.load(fields + AT_TOKEN * M + row).to(tl.int64) * KV_HEADS + kv_head) * D
            v_0, v_1 = _gated(v_0, v_1, gate, entry, new.dtype.element_ty, D, BLOCK_H)
        if head % (HEADS // KV_HEADS) == 0:
            _store_halves(keys + cached + length * D, k_0, k_1, D, BLOCK_H)
            _store_halves(values + cached + length * D, v_0, v_1, D, BLOCK_H)
        m, total, acc_0, acc_1 = _add_key(m, total, acc_0, acc_1, tl.sum(q_0 * k_0, 0) + tl.sum(q_1 * k_1, 0), v_0, v_1)
    pair = row * HEADS + head
    _put_together(m, total, acc_0, acc_1, out + pair * D, partial, partial_max, partial_total, arrived, pair, split, D, BLOCK_H, SPLITS)


@triton.jit
def _gated(v_0, v_1, gate, entry, dtype: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """Add a share of the token's embedding to a value."""
    more_0, more_1 = _halves(entry, D, BLOCK_H)
    return (v_0 + gate * more_0).to(dtype).to(tl.float32), (v_1 + gate * more_1).to(dtype).to(tl.float32)


@triton.jit
def _add_key(m, total, acc_0, acc_1, score, v_0, v_1):
    """Add one more key's score and value to a softmax under way."""
    new_m = tl.maximum(m, score)
    kept, weight = tl.exp(m - new_m), tl.exp(score - new_m)
    return new_m, total * kept + weight, acc_0 * kept + weight * v_0, acc_1 * kept + weight * v_1


@triton.jit
def _share(length, is_halted, split, WINDOW: tl.constexpr, BLOCK_T: tl.constexpr, SPLITS: tl.constexpr):
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
def _attend_cached(q_0, q_1, block, keys, values, begin, end, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return the largest score, the sum of the weights and the weighted sum of the values of a range of cached keys.

    `block` is the range's first; every block is loaded while the one before is worked on. Every line of a block keeps a softmax of its
    own; lines meet once, after the loop, where the warps have to wait for each other.
    """
    k_0, k_1, v_0, v_1 = block
    m = tl.full([BLOCK_T], LEAST, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc_0 = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    acc_1 = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
    for start in range(begin, end, BLOCK_T):
        next_k_0, next_k_1, next_v_0, next_v_1 = _cached(keys, values, start + BLOCK_T, end, D, BLOCK_H, BLOCK_T)
        is_key = start + tl.arange(0, BLOCK_T) < end
        scores = tl.sum(k_0.to(tl.float32) * q_0[None, :] + k_1.to(tl.float32) * q_1[None, :], 1)
        scores = tl.where(is_key, scores, LEAST)
        new_m = tl.maximum(m, scores)
        weights, kept = tl.where(is_key, tl.exp(scores - new_m), 0.0), tl.exp(m - new_m)
        m, total = new_m, total * kept + weights
        acc_0 = acc_0 * kept[:, None] + weights[:, None] * v_0.to(tl.float32)
        acc_1 = acc_1 * kept[:, None] + weights[:, None] * v_1.to(tl.float32)
        k_0, k_1, v_0, v_1 = next_k_0, next_k_1, next_v_0, next_v_1
    largest = tl.max(m, 0)
    kept = tl.exp(m - largest)
    return largest, tl.sum(total * kept, 0), tl.sum(acc_0 * kept[:, None], 0), tl.sum(acc_1 * kept[:, None], 0)


@triton.jit
def _put_together(
    m,
    total,
    acc_0,
    acc_1,
    out,
    partial,
    partial_max,
    partial_total,
    arrived,
    pair,
    split,
    D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Store a head's output: of the only split at once, else of all of them by the last that arrives, in one order whoever that is."""
    half = tl.arange(0, BLOCK_H)
    if SPLITS > 1:
        mine = pair * SPLITS + split
        tl.store(partial + mine * 2 * BLOCK_H + half, acc_0)
        tl.store(partial + mine * 2 * BLOCK_H + BLOCK_H + half, acc_1)
        tl.store(partial_max + mine, m)
        tl.store(partial_total + mine, total)
        tl.debug_barrier()  # all of the program has stored before it counts itself in
        is_last = tl.atomic_add(arrived + pair, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        if is_last:
            part = pair * SPLITS + tl.arange(0, SPLITS)
            maxima = tl.load(partial_max + part, cache_modifier=".cg")
            shares = tl.exp(maxima - tl.max(maxima, 0))
            total = tl.sum(tl.load(partial_total + part, cache_modifier=".cg") * shares, 0)
            place = partial + part[:, None] * 2 * BLOCK_H + half[None, :]
            acc_0 = tl.sum(tl.load(place, cache_modifier=".cg") * shares[:, None], 0)
            acc_1 = tl.sum(tl.load(place + BLOCK_H, cache_modifier=".cg") * shares[:, None], 0)
            tl.store(arrived + pair, 0)
            _store_halves(out, acc_0 / total, acc_1 / total, D, BLOCK_H)
    else:
        _store_halves(out, acc_0 / total, acc_1 / total, D, BLOCK_H)


@triton.jit
def _store_halves(out, first, second, D: tl.constexpr, BLOCK_H: tl.constexpr):
    half = tl.arange(0, BLOCK_H)
    tl.store(out + half, first, mask=half < D // 2)
    tl.store(out + D // 2 + half, second, mask=half < D // 2)


@triton.jit
def _halves(states, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """Load the two halves of a head's channels."""
    half = tl.arange(0, BLOCK_H)
    return load(states, half, half < D // 2), load(states + D // 2, half, half < D // 2)


@triton.jit
def _turned(states, cosines, sines, position, D: tl.constexpr, BLOCK_H: tl.constexpr, QK_SCALE: tl.constexpr):
    """Return the two halves of a head turned by the position and normed, rounded where the model rounds."""
    dtype: tl.constexpr = states.dtype.element_ty
    half = tl.arange(0, BLOCK_H)
    cos = load(cosines + position * (D // 2), half, half < D // 2)
    sin = load(sines + position * (D // 2), half, half < D // 2)
    a, b = _halves(states, D, BLOCK_H)
    first, second = (a * cos + b * sin).to(dtype).to(tl.float32), (b * cos - a * sin).to(dtype).to(tl.float32)
    factor = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / D + EPS)
    first, second = (first * factor).to(dtype).to(tl.float32), (second * factor).to(dtype).to(tl.float32)
    return (first * QK_SCALE).to(dtype).to(tl.float32), (second * QK_SCALE).to(dtype).to(tl.float32)


@triton.jit
def _value_gate(hidden, factor, weight, GATE_SIZE: tl.constexpr, GATE_RANGE: tl.constexpr):
    """Return how much of its token's embedding a value gets, from the first channels of the layer's normed input."""
    channel = tl.arange(0, triton.next_power_of_2(GATE_SIZE))
    x = (load(hidden, channel, channel < GATE_SIZE) * factor).to(hidden.dtype.element_ty).to(tl.float32)
    return GATE_RANGE * tl.sigmoid(tl.sum(load(weight, channel, channel < GATE_SIZE) * x, 0))
