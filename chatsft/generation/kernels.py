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
    """Wait until what the kernel before wrote can be read, then let the kernel after this one start, and wait in its turn."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _prefetch(weight, column, is_column, K: tl.constexpr):
    """Bring a program's part of a matrix into the L2 cache, a line of 128 bytes at a time."""
    channels: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
    lines: tl.constexpr = (K + channels - 1) // channels
    line = tl.arange(0, triton.next_power_of_2(lines))
    place = column[:, None].to(tl.int64) * K + line[None, :] * channels
    address = (weight + tl.where(is_column[:, None] & (line < lines)[None, :], place, 0)).to(tl.int64)
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1)


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
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
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
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Multiply the rows with a matrix, (N, K), or with three of them side by side, and do what follows in the model.

    A program makes BLOCK_N outputs of all rows. `out` is where the residual stream is read and written where RESIDUAL is set.
    """
    tile, which = tl.program_id(0), tl.program_id(1)
    weight = _one_of(which, weight_0, weight_1, weight_2)
    size = tl.where(which == 0, N_0, N_REST)
    first = tl.where(which == 0, 0, N_0 + (which - 1) * N_REST)
    row = tl.arange(0, BLOCK_M)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < M, column < size
    if EARLY:
        _prefetch(weight, column, is_column, K)
    _wait_for_the_kernel_before(EARLY)
    acc = _multiply(x, weight, row, column, is_row, is_column, K, NORM, BLOCK_M, BLOCK_N, BLOCK_K)
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
    if out.dtype.element_ty != x.dtype.element_ty:  # float32 logits, rounded first as the model's are
        acc = acc.to(x.dtype.element_ty).to(tl.float32)
    if SOFTCAP > 0:
        acc = SOFTCAP * (2.0 * tl.sigmoid(2.0 * acc / SOFTCAP) - 1.0)
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
def _multiply(
    x,
    weight,
    row,
    column,
    is_row,
    is_column,
    K: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return a block of x @ weight.T in float32, with the rows of x normed where NORM is set."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_mask, b_mask = is_row[:, None], is_column[None, :]
        if K % BLOCK_K != 0:
            a_mask, b_mask = a_mask & (k < K)[None, :], b_mask & (k < K)[:, None]
        a = tl.load(x + row[:, None] * K + k[None, :], mask=a_mask, other=0.0)
        b = tl.load(weight + column[None, :].to(tl.int64) * K + k[:, None], mask=b_mask, other=0.0)
        if NORM:
            squares += tl.sum(a.to(tl.float32) * a.to(tl.float32), 1)
        acc = tl.dot(a, b.to(a.dtype), acc, input_precision="ieee")
    if NORM:
        acc *= tl.rsqrt(squares / K + EPS)[:, None]
    return acc


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
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Turn and norm a row's new query and key, cache key and value, and attend; programs: (rows, query heads, splits of the keys)."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _wait_for_the_kernel_before(EARLY)
    dtype = keys.dtype.element_ty
    kv_head = head // (HEADS // KV_HEADS)
    length = tl.load(fields + AT_LENGTH * M + row)
    is_halted = tl.load(fields + AT_HALTED * M + row) != 0
    new = qkv + row * (HEADS + 2 * KV_HEADS) * D
    cached = (row.to(tl.int64) * KV_HEADS + kv_head) * CAPACITY * D
    q = SCALE * _turned(new + head * D, cosines, sines, length, D, BLOCK_D, QK_SCALE, dtype)

    begin, end = _share(length, is_halted, split, WINDOW, BLOCK_T, SPLITS)
    m, total, acc = _attend_cached(q, keys + cached, values + cached, begin, end, D, BLOCK_D, BLOCK_T)
    if split == 0:  # the new key and value
        channel, is_channel = _channels(D, BLOCK_D)
        k = _turned(new + (HEADS + kv_head) * D, cosines, sines, length, D, BLOCK_D, QK_SCALE, dtype)
        v = _load(new + (HEADS + KV_HEADS + kv_head) * D, channel, is_channel)
        if VALUE_EMBEDDING:
            gate = _value_gate(hidden + row * WIDTH, value_gate + kv_head * GATE_SIZE, GATE_SIZE, GATE_RANGE, WIDTH, BLOCK_WIDTH, dtype)
            token = tl.load(fields + AT_TOKEN * M + row).to(tl.int64)
            v = (v + gate * _load(value_table + (token * KV_HEADS + kv_head) * D, channel, is_channel)).to(dtype).to(tl.float32)
        if head % (HEADS // KV_HEADS) == 0:
            tl.store(keys + cached + length * D + channel, k, mask=is_channel)
            tl.store(values + cached + length * D + channel, v, mask=is_channel)
        m, total, acc = _add_part(m, total, acc, tl.sum(q * k, 0), v)
    pair = row * HEADS + head
    _put_together(m, total, acc, out + pair * D, partial, partial_max, partial_total, arrived, pair, split, D, BLOCK_D, SPLITS)


@triton.jit
def _share(length, is_halted, split, WINDOW: tl.constexpr, BLOCK_T: tl.constexpr, SPLITS: tl.constexpr):
    """Return the range of cached keys that a split attends to; a halted row's output is never used, so it attends to none."""
    first = tl.maximum(length + 1 - WINDOW, 0)
    count = tl.where(is_halted, 0, length - first)
    size = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK_T) * BLOCK_T
    begin = first + split * size
    return begin, tl.minimum(begin + size, first + count)


@triton.jit
def _attend_cached(q, keys, values, begin, end, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return the largest score, the sum of the weights and the weighted sum of the values of a range of cached keys.

    Every line of a block keeps a softmax of its own; lines meet once, after the loop, where the warps have to wait for each other.
    """
    channel, is_channel = _channels(D, BLOCK_D)
    m = tl.full([BLOCK_T], LEAST, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        is_key = t < end
        place, inside = t[:, None] * D + channel[None, :], is_key[:, None] & is_channel[None, :]
        k, v = _load(keys, place, inside), _load(values, place, inside)
        scores = tl.where(is_key, tl.sum(k * q[None, :], 1), LEAST)
        new_m = tl.maximum(m, scores)
        weights, kept = tl.where(is_key, tl.exp(scores - new_m), 0.0), tl.exp(m - new_m)
        total = total * kept + weights
        acc = acc * kept[:, None] + weights[:, None] * v
        m = new_m
    largest = tl.max(m, 0)
    kept = tl.exp(m - largest)
    return largest, tl.sum(total * kept, 0), tl.sum(acc * kept[:, None], 0)


@triton.jit
def _add_part(m, total, acc, score, value):
    """Add one more key's score and value to a softmax under way."""
    new_m = tl.maximum(m, score)
    kept, weight = tl.exp(m - new_m), tl.exp(score - new_m)
    return new_m, total * kept + weight, acc * kept + weight * value


@triton.jit
def _put_together(
    m,
    total,
    acc,
    out,
    partial,
    partial_max,
    partial_total,
    arrived,
    pair,
    split,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Store a head's output: of the only split at once, else of all of them by the last that arrives, in one order whoever that is."""
    channel, is_channel = _channels(D, BLOCK_D)
    if SPLITS == 1:
        tl.store(out + channel, acc / total, mask=is_channel)
    else:
        lane = tl.arange(0, BLOCK_D)
        tl.store(partial + (pair * SPLITS + split) * BLOCK_D + lane, acc)
        tl.store(partial_max + pair * SPLITS + split, m)
        tl.store(partial_total + pair * SPLITS + split, total)
        tl.debug_barrier()  # all of the program has stored before it counts itself in
        if tl.atomic_add(arrived + pair, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            part = pair * SPLITS + tl.arange(0, SPLITS)
            maxima = tl.load(partial_max + part, cache_modifier=".cg")
            shares = tl.exp(maxima - tl.max(maxima, 0))
            totals = tl.load(partial_total + part, cache_modifier=".cg") * shares
            accs = tl.load(partial + part[:, None] * BLOCK_D + lane[None, :], cache_modifier=".cg") * shares[:, None]
            tl.store(out + channel, tl.sum(accs, 0) / tl.sum(totals, 0), mask=is_channel)
            tl.store(arrived + pair, 0)


@triton.jit
def _channels(D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the channels of a head in a block of a power of two, half by half, and which of them exist."""
    lane = tl.arange(0, BLOCK_D)
    if D == BLOCK_D:
        return lane, lane < D
    place = lane % (BLOCK_D // 2)
    return (lane // (BLOCK_D // 2)) * (D // 2) + place, place < D // 2


@triton.jit
def _turned(states, cosines, sines, position, D: tl.constexpr, BLOCK_D: tl.constexpr, QK_SCALE: tl.constexpr, dtype: tl.constexpr):
    """Return a head turned by the position and normed, rounded where the model rounds."""
    half = tl.arange(0, BLOCK_D // 2)
    is_half = half < D // 2
    cos = tl.load(cosines + position * (D // 2) + half, mask=is_half, other=0.0)
    sin = tl.load(sines + position * (D // 2) + half, mask=is_half, other=0.0)
    a = tl.load(states + half, mask=is_half, other=0.0).to(tl.float32)
    b = tl.load(states + D // 2 + half, mask=is_half, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.trans(tl.join(a * cos + b * sin, b * cos - a * sin)), [BLOCK_D]).to(dtype).to(tl.float32)
    turned = (turned * tl.rsqrt(tl.sum(turned * turned, 0) / D + EPS)).to(dtype).to(tl.float32)
    return (turned * QK_SCALE).to(dtype).to(tl.float32)


@triton.jit
def _value_gate(
    hidden,
    weight,
    GATE_SIZE: tl.constexpr,
    GATE_RANGE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return how much of its token's embedding a value gets, from the first channels of the layer's normed input."""
    channel = tl.arange(0, BLOCK_WIDTH)
    x = tl.load(hidden + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
    x = (x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + EPS)).to(dtype).to(tl.float32)
    return GATE_RANGE * tl.sigmoid(tl.sum(tl.load(weight + channel, mask=channel < GATE_SIZE, other=0.0).to(tl.float32) * x, 0))


@triton.jit
def advance(fields, planned, stops, trace, chosen, M: tl.constexpr, CAPACITY: tl.constexpr, EARLY: tl.constexpr):
    """Do to a row what `Slots.advance` does."""
    row = tl.program_id(0)
    _wait_for_the_kernel_before(EARLY)
    token = tl.load(fields + AT_TOKEN * M + row)
    length = tl.load(fields + AT_LENGTH * M + row)
    runs = tl.load(fields + AT_HALTED * M + row) == 0
    steps = tl.load(fields + AT_STEPS * M + row)
    position = length + 1
    plan = tl.load(planned + row * CAPACITY + tl.minimum(position, CAPACITY - 1))
    following = tl.where(plan >= 0, plan, tl.load(chosen + row).to(tl.int32))
    tl.store(trace + steps % LINES * M + row, tl.where(runs, following, -1))
    tl.store(fields + AT_STEPS * M + row, steps + 1)
    if runs:
        halts = (tl.load(stops + following) != 0) | (position + 1 >= tl.load(fields + AT_END * M + row))
        tl.store(fields + AT_PREVIOUS * M + row, token)
        tl.store(fields + AT_TOKEN * M + row, following)
        tl.store(fields + AT_LENGTH * M + row, position)
        tl.store(fields + AT_HALTED * M + row, halts.to(tl.int32))
