"""The Triton kernels of one decoding step: five for a layer, so that a step costs little more than reading the weights and the cache.

The root mean square norm has no weights, so it is a factor for each row and can be applied after a product instead of before it: a matrix
product and the norm of its input are one kernel. Sums are float32; what a kernel hands on is rounded to the compute dtype.

Names: M rows, N outputs and K inputs of a product, D channels of a head.
"""

import triton
import triton.language as tl

from chatsft.generation.slots import END, HALTED, LENGTH, PREVIOUS, STEPS, TOKEN, TRACE_STEPS

EPS = tl.constexpr(1.1920928955078125e-07)
"""What torch's rms_norm adds by itself, the smallest step of float32, in every dtype."""
AT_TOKEN, AT_PREVIOUS, AT_LENGTH, AT_END, AT_HALTED, AT_STEPS = (
    tl.constexpr(field) for field in (TOKEN, PREVIOUS, LENGTH, END, HALTED, STEPS)
)
LINES = tl.constexpr(TRACE_STEPS)
LEAST = tl.constexpr(-1e30)
"""A score below all others that, unlike infinity, can be subtracted from itself."""


@triton.jit
def _wait_for_the_kernel_before(EARLY: tl.constexpr):
    """Wait until what the kernel before wrote can be read, then let the kernel after this one start, which waits in its turn.

    When a kernel starts, all but the one before have ended: what those wrote, and the weights, can be loaded before waiting.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def embed(
    fields,
    table,
    smear_gate,
    smear_lambda,
    resid_lambda,
    x0_lambda,
    initial,
    hidden,
    squares,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    SMEAR: tl.constexpr,
    SMEAR_SIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Look a row's token up, norm it, smear the token before into it, and scale it for the first layer."""
    row = tl.program_id(0)
    _wait_for_the_kernel_before(EARLY)
    channel = tl.arange(0, BLOCK)
    inside = channel < WIDTH
    token = tl.load(fields + AT_TOKEN * M + row).to(tl.int64)
    x = _embedding(table, token, channel, inside, WIDTH, hidden.dtype.element_ty)
    if SMEAR:
        previous = tl.load(fields + AT_PREVIOUS * M + row).to(tl.int64)
        before = _embedding(table, previous, channel, inside, WIDTH, hidden.dtype.element_ty)
        weight = tl.load(smear_gate + channel, mask=channel < SMEAR_SIZE, other=0.0).to(tl.float32)
        gate = tl.load(smear_lambda).to(tl.float32) * tl.sigmoid(tl.sum(weight * x, 0))
        gate = tl.where(tl.load(fields + AT_LENGTH * M + row) > 0, gate, 0.0)
        x = (x + gate * before).to(hidden.dtype.element_ty).to(tl.float32)
    if RESCALE:
        tl.store(initial + row * WIDTH + channel, x, mask=inside)
        x = (tl.load(resid_lambda).to(tl.float32) + tl.load(x0_lambda).to(tl.float32)) * x
    tl.store(hidden + row * WIDTH + channel, x, mask=inside)
    x = x.to(hidden.dtype.element_ty).to(tl.float32)
    tile = tl.arange(0, BLOCK_TILES)
    tl.store(squares + tile * M + row, tl.where(tile == 0, tl.sum(x * x, 0), 0.0), mask=tile < TILES)


@triton.jit
def _embedding(table, token, channel, inside, WIDTH: tl.constexpr, dtype: tl.constexpr):
    x = tl.load(table + token * WIDTH + channel, mask=inside, other=0.0).to(dtype).to(tl.float32)
    return (x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + EPS)).to(dtype).to(tl.float32)


@triton.jit
def project(
    x,
    weight_0,
    weight_1,
    weight_2,
    out,
    resid_lambda,
    x0_lambda,
    initial,
    backout_lambda,
    middle,
    squares,
    maxima,
    M: tl.constexpr,
    N_0: tl.constexpr,
    N_REST: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    SQUARED_RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SAVE_MIDDLE: tl.constexpr,
    BACKOUT: tl.constexpr,
    RESCALE: tl.constexpr,
    LOGITS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    PREFETCH: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Multiply the rows with a matrix, (N, K), or with three of them side by side, and do what follows in the model.

    A program makes BLOCK_N outputs of all rows. `out` is where the residual stream is read and written where RESIDUAL is set; then every
    tile leaves the sum of its squares in `squares`, (TILES, rows), from which NORM makes the norm of the next product's input.
    """
    tile, which = tl.program_id(0), tl.program_id(1)
    weight = _one_of(which, weight_0, weight_1, weight_2)
    size = tl.where(which == 0, N_0, N_REST)
    first = tl.where(which == 0, 0, N_0 + (which - 1) * N_REST)
    row = tl.arange(0, BLOCK_M)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < M, column < size
    if BLOCK_M == 1:
        acc = _multiply_row(x, weight, column, is_column, K, BLOCK_N, BLOCK_K, EARLY)
    else:
        if PREFETCH:
            _prefetch(weight, column, size, K, BLOCK_N, PARTS)
        _wait_for_the_kernel_before(EARLY)
        acc = _multiply_rows(x, weight, row, column, is_row, is_column, K, BLOCK_M, BLOCK_N, BLOCK_K, PARTS)
    if NORM:
        acc *= _norm_factors(squares, row, is_row, M, K, TILES, BLOCK_TILES)[:, None]
    place = row[:, None] * (N_0 + 2 * N_REST) + first + column[None, :]
    inside = is_row[:, None] & is_column[None, :]
    if SQUARED_RELU:
        acc = tl.maximum(acc, 0.0)
        acc *= acc
    if RESIDUAL:
        acc = acc.to(out.dtype.element_ty).to(tl.float32) + _load(out, place, inside)
        if SAVE_MIDDLE:
            tl.store(middle + place, acc, mask=inside)
        if BACKOUT:  # the one layer of a model is its middle too
            acc -= _number(backout_lambda) * (acc if SAVE_MIDDLE else _load(middle, place, inside))
        if RESCALE:
            acc = _number(resid_lambda) * acc + _number(x0_lambda) * _load(initial, place, inside)
        kept = acc.to(out.dtype.element_ty).to(tl.float32)
        tl.store(squares + tile * M + row, tl.sum(tl.where(inside, kept * kept, 0.0), 1), mask=is_row)
    if LOGITS:  # float32, rounded first as the model's are
        acc = acc.to(x.dtype.element_ty).to(tl.float32)
        if SOFTCAP > 0:
            acc = SOFTCAP * (2.0 * tl.sigmoid(2.0 * acc / SOFTCAP) - 1.0)
        tl.store(maxima + row * tl.num_programs(0) + tile, tl.max(tl.where(inside, acc, float("-inf")), 1), mask=is_row)
    tl.store(out + place, acc, mask=inside)


@triton.jit
def _one_of(which, weight_0, weight_1, weight_2):
    weight = weight_0
    if which == 1:
        weight = weight_1
    if which == 2:
        weight = weight_2
    return weight


@triton.jit
def _multiply_row(x, weight, column, is_column, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr):
    """Return x @ weight.T of one row, (1, BLOCK_N) in float32, without matrix units; weights are loaded one block ahead."""
    k = tl.arange(0, BLOCK_K)
    lines, is_line = weight + column[:, None].to(tl.int64) * K, is_column[:, None]
    following = tl.load(lines + k[None, :], mask=is_line & (k < K)[None, :], other=0.0)
    _wait_for_the_kernel_before(EARLY)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        b, now, after = following, start + k, start + BLOCK_K + k
        following = tl.load(lines + after[None, :], mask=is_line & (after < K)[None, :], other=0.0)
        a = tl.load(x + now, mask=now < K, other=0.0)
        acc += b.to(a.dtype).to(tl.float32) * a.to(tl.float32)[None, :]
    return tl.sum(acc, 1)[None, :]


@triton.jit
def _multiply_rows(
    x,
    weight,
    row,
    column,
    is_row,
    is_column,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Return x @ weight.T in float32, (BLOCK_M, BLOCK_N).

    The inputs are divided among PARTS warps, each with sums of its own: one after the other, the products of a few rows would take
    longer than to read the weights.
    """
    if PARTS == 1:
        return _multiply_part(x, weight, row, column, is_row, is_column, K, BLOCK_M, BLOCK_N, BLOCK_K)
    k = tl.arange(0, PARTS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    acc = tl.zeros([PARTS, BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, K, PARTS * BLOCK_K):
        at = start + k
        a_mask, b_mask = is_row[None, None, :], is_column[None, :, None]
        if K % (PARTS * BLOCK_K) != 0:
            a_mask, b_mask = a_mask & (at < K)[:, :, None], b_mask & (at < K)[:, None, :]
        b = tl.load(weight + column[None, :, None].to(tl.int64) * K + at[:, None, :], mask=b_mask, other=0.0)
        a = tl.load(x + row[None, None, :] * K + at[:, :, None], mask=a_mask, other=0.0)
        acc = tl.dot(b.to(a.dtype), a, acc, input_precision="ieee")
    return tl.trans(tl.sum(acc, 0))


@triton.jit
def _multiply_part(
    x, weight, row, column, is_row, is_column, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Return the same with the rows and outputs divided among the warps, of which many rows have enough for all."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_mask, b_mask = is_row[:, None], is_column[None, :]
        if K % BLOCK_K != 0:
            a_mask, b_mask = a_mask & (k < K)[None, :], b_mask & (k < K)[:, None]
        a = tl.load(x + row[:, None] * K + k[None, :], mask=a_mask, other=0.0)
        b = tl.load(weight + column[None, :].to(tl.int64) * K + k[:, None], mask=b_mask, other=0.0)
        acc = tl.dot(a, b.to(a.dtype), acc, input_precision="ieee")
    return acc


@triton.jit
def _prefetch(weight, column, size, K: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr):
    """Bring a program's part of a matrix into the L2 cache, a piece of a line by each thread."""
    pieces: tl.constexpr = 32 * PARTS // BLOCK_N
    piece: tl.constexpr = K // pieces
    place = tl.minimum(column, size - 1)[:, None].to(tl.int64) * K + tl.arange(0, pieces)[None, :] * piece
    num_bytes = tl.full([BLOCK_N, pieces], piece * (weight.dtype.element_ty.primitive_bitwidth // 8), tl.int32)
    prefetch: tl.constexpr = "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(prefetch, "=r,l,r", [(weight + place).to(tl.int64), num_bytes], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _norm_factors(squares, row, is_row, M: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr):
    """Return 1 / root mean square of every row."""
    tile = tl.arange(0, BLOCK_TILES)
    parts = tl.load(squares + tile[:, None] * M + row[None, :], mask=(tile < TILES)[:, None] & is_row[None, :], other=0.0)
    return tl.rsqrt(tl.sum(parts, 0) / K + EPS)


@triton.jit
def _load(states, place, inside):
    return tl.load(states + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _number(parameter):
    return tl.load(parameter).to(tl.float32)


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
    BLOCK_GATE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Turn and norm a row's new query and key, cache key and value, and attend; programs: (rows, query heads, splits of the keys)."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dtype = keys.dtype.element_ty
    kv_head = head // (HEADS // KV_HEADS)
    length = tl.load(fields + AT_LENGTH * M + row)  # this and what is cached was written in earlier steps, so need not be waited for
    is_halted = tl.load(fields + AT_HALTED * M + row) != 0
    cached = (row.to(tl.int64) * KV_HEADS + kv_head) * CAPACITY * D
    begin, end = _share(length, is_halted, split, WINDOW, BLOCK_T, SPLITS)
    block = _cached(keys + cached, values + cached, begin, end, D, BLOCK_H, BLOCK_T)
    _wait_for_the_kernel_before(EARLY)
    new = qkv + row * (HEADS + 2 * KV_HEADS) * D
    q_0, q_1 = _turned(new + head * D, cosines, sines, length, D, BLOCK_H, QK_SCALE, dtype)

    m, total, acc_0, acc_1 = _attend_cached(
        SCALE * q_0, SCALE * q_1, block, keys + cached, values + cached, begin, end, D, BLOCK_H, BLOCK_T
    )
    if split == 0:  # the new key and value
        half, is_half = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_H) < D // 2
        k_0, k_1 = _turned(new + (HEADS + kv_head) * D, cosines, sines, length, D, BLOCK_H, QK_SCALE, dtype)
        v_0, v_1 = _halves(new + (HEADS + KV_HEADS + kv_head) * D, D, BLOCK_H)
        if VALUE_EMBEDDING:
            rows = row + tl.arange(0, 1)
            factor = tl.sum(_norm_factors(squares, rows, rows < M, M, WIDTH, TILES, BLOCK_TILES), 0)
            gate = _value_gate(hidden + row * WIDTH, factor, value_gate + kv_head * GATE_SIZE, GATE_SIZE, GATE_RANGE, BLOCK_GATE, dtype)
            token = tl.load(fields + AT_TOKEN * M + row).to(tl.int64)
            more_0, more_1 = _halves(value_table + (token * KV_HEADS + kv_head) * D, D, BLOCK_H)
            v_0, v_1 = (v_0 + gate * more_0).to(dtype).to(tl.float32), (v_1 + gate * more_1).to(dtype).to(tl.float32)
        if head % (HEADS // KV_HEADS) == 0:
            key, value = keys + cached + length * D + half, values + cached + length * D + half
            tl.store(key, k_0, mask=is_half)
            tl.store(key + D // 2, k_1, mask=is_half)
            tl.store(value, v_0, mask=is_half)
            tl.store(value + D // 2, v_1, mask=is_half)
        score = SCALE * (tl.sum(q_0 * k_0, 0) + tl.sum(q_1 * k_1, 0))
        new_m = tl.maximum(m, score)
        kept, weight = tl.exp(m - new_m), tl.exp(score - new_m)
        m, total, acc_0, acc_1 = new_m, total * kept + weight, acc_0 * kept + weight * v_0, acc_1 * kept + weight * v_1
    pair = row * HEADS + head
    _put_together(m, total, acc_0, acc_1, out + pair * D, partial, partial_max, partial_total, arrived, pair, split, D, BLOCK_H, SPLITS)


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
            _store_head(out, acc_0 / total, acc_1 / total, D, BLOCK_H)
    else:
        _store_head(out, acc_0 / total, acc_1 / total, D, BLOCK_H)


@triton.jit
def _store_head(out, first, second, D: tl.constexpr, BLOCK_H: tl.constexpr):
    half = tl.arange(0, BLOCK_H)
    tl.store(out + half, first, mask=half < D // 2)
    tl.store(out + D // 2 + half, second, mask=half < D // 2)


@triton.jit
def _halves(states, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """Load the two halves of a head's channels."""
    half = tl.arange(0, BLOCK_H)
    return _load(states, half, half < D // 2), _load(states + D // 2, half, half < D // 2)


@triton.jit
def _turned(states, cosines, sines, position, D: tl.constexpr, BLOCK_H: tl.constexpr, QK_SCALE: tl.constexpr, dtype: tl.constexpr):
    """Return the two halves of a head turned by the position and normed, rounded where the model rounds."""
    half = tl.arange(0, BLOCK_H)
    cos = _load(cosines + position * (D // 2), half, half < D // 2)
    sin = _load(sines + position * (D // 2), half, half < D // 2)
    a, b = _halves(states, D, BLOCK_H)
    first, second = (a * cos + b * sin).to(dtype).to(tl.float32), (b * cos - a * sin).to(dtype).to(tl.float32)
    factor = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / D + EPS)
    first, second = (first * factor).to(dtype).to(tl.float32), (second * factor).to(dtype).to(tl.float32)
    return (first * QK_SCALE).to(dtype).to(tl.float32), (second * QK_SCALE).to(dtype).to(tl.float32)


@triton.jit
def _value_gate(hidden, factor, weight, GATE_SIZE: tl.constexpr, GATE_RANGE: tl.constexpr, BLOCK_GATE: tl.constexpr, dtype: tl.constexpr):
    """Return how much of its token's embedding a value gets, from the first channels of the layer's normed input."""
    channel = tl.arange(0, BLOCK_GATE)
    x = (_load(hidden, channel, channel < GATE_SIZE) * factor).to(dtype).to(tl.float32)
    return GATE_RANGE * tl.sigmoid(tl.sum(_load(weight, channel, channel < GATE_SIZE) * x, 0))


@triton.jit
def advance(
    fields,
    planned,
    stops,
    trace,
    chosen,
    scores,
    maxima,
    M: tl.constexpr,
    CAPACITY: tl.constexpr,
    GREEDY: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Do to a row what `Slots.advance` does, with the token chosen for it or, where GREEDY is set, the first of the largest logits."""
    row = tl.program_id(0)
    _wait_for_the_kernel_before(EARLY)
    token = tl.load(fields + AT_TOKEN * M + row)
    length = tl.load(fields + AT_LENGTH * M + row)
    runs = tl.load(fields + AT_HALTED * M + row) == 0
    steps = tl.load(fields + AT_STEPS * M + row)
    position = length + 1
    plan = tl.load(planned + row * CAPACITY + tl.minimum(position, CAPACITY - 1))
    if GREEDY:
        following = _largest(scores + row.to(tl.int64) * VOCABULARY, maxima + row * TILES, VOCABULARY, BLOCK_N, TILES, BLOCK_TILES)
    else:
        following = tl.load(chosen + row).to(tl.int32)
    following = tl.where(plan >= 0, plan, following)
    tl.store(trace + steps % LINES * M + row, tl.where(runs, following, -1))
    tl.store(fields + AT_STEPS * M + row, steps + 1)
    if runs:
        halts = (tl.load(stops + following) != 0) | (position + 1 >= tl.load(fields + AT_END * M + row))
        tl.store(fields + AT_PREVIOUS * M + row, token)
        tl.store(fields + AT_TOKEN * M + row, following)
        tl.store(fields + AT_LENGTH * M + row, position)
        tl.store(fields + AT_HALTED * M + row, halts.to(tl.int32))


@triton.jit
def _largest(scores, maxima, VOCABULARY: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr, BLOCK_TILES: tl.constexpr):
    """Return the place of a row's first largest score, by way of the first tile that has it."""
    tile = tl.arange(0, BLOCK_TILES)
    parts = tl.load(maxima + tile, mask=tile < TILES, other=float("-inf"))
    best = tl.min(tl.where(parts == tl.max(parts, 0), tile, TILES - 1), 0)
    column = best * BLOCK_N + tl.arange(0, BLOCK_N)
    found = tl.load(scores + column, mask=column < VOCABULARY, other=float("-inf"))
    return tl.min(tl.where(found == tl.max(found, 0), column, VOCABULARY - 1), 0)
