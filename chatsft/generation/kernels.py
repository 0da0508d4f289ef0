"""The Triton kernels of one decoding step but for attention: with it five for a layer, a step that costs little more than to read
the weights and the cache.

The root mean square norm has no weights, so it is a factor for each row and can be applied after a product instead of before it: a
matrix product and the norm of its input are one kernel: where a product adds to the residual stream, every tile leaves the sum of its
squares in `squares`, (tiles, rows), from which the next product makes the norm. Sums are float32; what a kernel hands on is rounded to
the compute dtype.

Names: M rows, N outputs and K inputs of a product, D channels of a head.
"""

import triton
import triton.language as tl

from chatsft.generation.products import add_up, let_the_kernel_after_start, multiply, wait_for_the_kernel_before
from chatsft.generation.slots import END, HALTED, LENGTH, PREVIOUS, STEPS, TOKEN, TRACE_STEPS

EPS = tl.constexpr(1.1920928955078125e-07)
"""What torch's rms_norm adds by itself, the smallest step of float32, in every dtype."""
AT_TOKEN, AT_PREVIOUS, AT_LENGTH, AT_END, AT_HALTED, AT_STEPS = (
    tl.constexpr(field) for field in (TOKEN, PREVIOUS, LENGTH, END, HALTED, STEPS)
)
LINES = tl.constexpr(TRACE_STEPS)


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
    SMEAR: tl.constexpr,
    SMEAR_SIZE: tl.constexpr,
    RESCALE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Look a row's token up, norm it, smear the token before into it, and scale it for the first layer."""
    row = tl.program_id(0)
    wait_for_the_kernel_before(EARLY)
    let_the_kernel_after_start(EARLY)
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
    tile = tl.arange(0, triton.next_power_of_2(TILES))
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
    shares,
    arrived,
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
    PRELOAD: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLITS: tl.constexpr,
    TILES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Multiply the rows with a matrix, (N, K), or with three side by side, and do what follows; SPLITS programs share a tile's inputs."""
    tile, which = tl.program_id(0), tl.program_id(1)
    weight, size, first = _matrix(which, weight_0, weight_1, weight_2, N_0, N_REST)
    row, column = tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    place, is_row = row[:, None] * (N_0 + 2 * N_REST) + first + column[None, :], row < M
    inside = is_row[:, None] & (column < size)[None, :]
    if RESIDUAL:
        states = load(out, place, inside)  # as it was before the kernel before, so need not be waited for
    acc = multiply(x, weight, tile, size, M, K, BLOCK_M, BLOCK_N, BLOCK_K, PRELOAD, AHEAD, SPLITS, EARLY)
    finishes = True
    if SPLITS > 1:
        finishes, acc = add_up(acc, shares, arrived, which * tl.num_programs(0) + tile, BLOCK_M, BLOCK_N, SPLITS)
    if finishes:
        acc = _scaled(acc, squares, row, is_row, M, K, NORM, SQUARED_RELU, TILES)
        if RESIDUAL:
            acc = acc.to(out.dtype.element_ty).to(tl.float32) + states
            acc = _mixed(acc, middle, initial, backout_lambda, resid_lambda, x0_lambda, place, inside, SAVE_MIDDLE, BACKOUT, RESCALE)
            _store_squares(acc.to(out.dtype.element_ty).to(tl.float32), squares + tile * M + row, is_row, inside)
        if LOGITS:
            acc = _capped(acc.to(x.dtype.element_ty).to(tl.float32), SOFTCAP)  # rounded as the model's are
            tl.store(maxima + row * tl.num_programs(0) + tile, tl.max(tl.where(inside, acc, float("-inf")), 1), mask=is_row)
        tl.store(out + place, acc, mask=inside)


@triton.jit
def _scaled(
    acc, squares, row, is_row, M: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, SQUARED_RELU: tl.constexpr, TILES: tl.constexpr
):
    """Norm the input after its product, by the sums of squares that its tiles have left, and square what is positive."""
    if NORM:
        acc *= norm_factors(squares, row, is_row, M, K, TILES)[:, None]
    if SQUARED_RELU:
        acc = tl.maximum(acc, 0.0) * tl.maximum(acc, 0.0)
    return acc


@triton.jit
def _matrix(which, weight_0, weight_1, weight_2, N_0: tl.constexpr, N_REST: tl.constexpr):
    """Return one of the matrices, its outputs and how many come before them."""
    weight = weight_0
    if which == 1:
        weight = weight_1
    if which == 2:
        weight = weight_2
    return weight, tl.where(which == 0, N_0, N_REST), tl.where(which == 0, 0, N_0 + (which - 1) * N_REST)


@triton.jit
def _mixed(
    states,
    middle,
    initial,
    backout_lambda,
    resid_lambda,
    x0_lambda,
    place,
    inside,
    SAVE_MIDDLE: tl.constexpr,
    BACKOUT: tl.constexpr,
    RESCALE: tl.constexpr,
):
    """Return the residual stream as the next layer or the head reads it."""
    if SAVE_MIDDLE:
        tl.store(middle + place, states, mask=inside)
    if BACKOUT:  # the one layer of a model is its middle too
        states -= _number(backout_lambda) * (states if SAVE_MIDDLE else load(middle, place, inside))
    if RESCALE:
        states = _number(resid_lambda) * states + _number(x0_lambda) * load(initial, place, inside)
    return states


@triton.jit
def _store_squares(states, squares, is_row, inside):
    tl.store(squares, tl.sum(tl.where(inside, states * states, 0.0), 1), mask=is_row)


@triton.jit
def _capped(logits, SOFTCAP: tl.constexpr):
    if SOFTCAP > 0:
        logits = SOFTCAP * (2.0 * tl.sigmoid(2.0 * logits / SOFTCAP) - 1.0)
    return logits


@triton.jit
def norm_factors(squares, row, is_row, M: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr):
    """Return 1 / root mean square of every row."""
    tile = tl.arange(0, triton.next_power_of_2(TILES))
    parts = tl.load(squares + tile[:, None] * M + row[None, :], mask=(tile < TILES)[:, None] & is_row[None, :], other=0.0)
    return tl.rsqrt(tl.sum(parts, 0) / K + EPS)


@triton.jit
def load(states, place, inside):
    return tl.load(states + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _number(parameter):
    return tl.load(parameter).to(tl.float32)


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
    EARLY: tl.constexpr,
):
    """Do to a row what `Slots.advance` does, with the token chosen for it or, where GREEDY is set, the first of the largest logits."""
    row = tl.program_id(0)
    wait_for_the_kernel_before(EARLY)
    let_the_kernel_after_start(EARLY)
    token = tl.load(fields + AT_TOKEN * M + row)
    length = tl.load(fields + AT_LENGTH * M + row)
    runs = tl.load(fields + AT_HALTED * M + row) == 0
    steps = tl.load(fields + AT_STEPS * M + row)
    position = length + 1
    plan = tl.load(planned + row * CAPACITY + tl.minimum(position, CAPACITY - 1))
    if GREEDY:
        following = _largest(scores + row.to(tl.int64) * VOCABULARY, maxima + row * TILES, VOCABULARY, BLOCK_N, TILES)
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
def _largest(scores, maxima, VOCABULARY: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr):
    """Return the place of a row's first largest score, by way of the first tile that has it."""
    tile = tl.arange(0, triton.next_power_of_2(TILES))
    parts = tl.load(maxima + tile, mask=tile < TILES, other=float("-inf"))
    best = tl.min(tl.where(parts == tl.max(parts, 0), tile, TILES - 1), 0)
    column = best * BLOCK_N + tl.arange(0, BLOCK_N)
    found = tl.load(scores + column, mask=column < VOCABULARY, other=float("-inf"))
    return tl.min(tl.where(found == tl.max(found, 0), column, VOCABULARY - 1), 0)
