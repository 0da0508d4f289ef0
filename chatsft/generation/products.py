"""How a decoding kernel multiplies its rows with a matrix: one row, few, or many; and how programs that share a tile add up.

Names: M rows, N outputs and K inputs of a product, KP of these inputs for each of SPLITS programs that share a tile.
"""

import triton
import triton.language as tl


@triton.jit
def wait_for_the_kernel_before(EARLY: tl.constexpr):
    """Wait until what the kernel before wrote can be read.

    When a kernel starts, all but the one before have ended: what those wrote, and the weights, can be loaded before waiting. The
    instruction is spelled out because Triton's own function, from 3.9 on, keeps a loop around it from loading ahead.
    """
    if EARLY:
        tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def let_the_kernel_after_start(EARLY: tl.constexpr):
    """Let the next kernel start as soon as all programs of this one have come here; it waits in its turn."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def multiply(
    x,
    weight,
    tile,
    size,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRELOAD: tl.constexpr,
    AHEAD: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Return a tile of x @ weight.T, (BLOCK_M, BLOCK_N) in float32, over this program's part of the inputs."""
    row, column = tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_column = row < M, column < size
    if BLOCK_M == 1:
        acc = _multiply_row(x, weight, column, is_column, K, BLOCK_N, BLOCK_K, EARLY)
    elif PRELOAD > 0:
        KP: tl.constexpr = K // SPLITS
        begin = tl.program_id(2) * KP
        WARPS: tl.constexpr = BLOCK_K // 32
        acc = _multiply_few_rows(x + begin, weight + begin, tile * BLOCK_N, size, M, K, KP, BLOCK_M, BLOCK_N, WARPS, PRELOAD, AHEAD, EARLY)
    else:
        acc = _multiply_rows(x, weight, row, column, is_row, is_column, K, BLOCK_M, BLOCK_N, BLOCK_K, EARLY)
    return acc


@triton.jit
def _multiply_row(x, weight, column, is_column, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr):
    """Return x @ weight.T of one row, (1, BLOCK_N) in float32, without matrix units; weights are loaded one block ahead."""
    k = tl.arange(0, BLOCK_K)
    lines, is_line = weight + column[:, None].to(tl.int64) * K, is_column[:, None]
    following = tl.load(lines + k[None, :], mask=is_line & (k < K)[None, :], other=0.0)
    wait_for_the_kernel_before(EARLY)
    let_the_kernel_after_start(EARLY)
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
    EARLY: tl.constexpr,
):
    """Return x @ weight.T of many rows, (BLOCK_M, BLOCK_N) in float32, both loaded some blocks ahead into shared memory."""
    wait_for_the_kernel_before(EARLY)
    let_the_kernel_after_start(EARLY)
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
def _multiply_few_rows(
    x,
    weight,
    first,
    size,
    M: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    PRELOAD: tl.constexpr,
    AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Return x @ weight.T of few rows, (BLOCK_M, BLOCK_N) in float32, over the KP inputs from x and weight on.

    Few rows are little work for a weight, so what counts is when its loading begins: PRELOAD blocks of weights are loaded before the
    kernel before has ended, straight into the registers from which the matrix units take them, and then AHEAD blocks of inputs at once.
    Every warp takes 32 inputs of a block.
    """
    blocks = ()
    for index in tl.static_range(PRELOAD):
        blocks = blocks + (_load_block(weight, first, size, index, K, KP, BLOCK_N, WARPS),)  # noqa: RUF005 (Triton unpacks no tuples)
    wait_for_the_kernel_before(EARLY)
    let_the_kernel_after_start(EARLY)
    inputs = ()
    for index in tl.static_range(AHEAD):
        inputs = inputs + (_load_block(x, 0, M, index, K, KP, BLOCK_M, WARPS),)  # noqa: RUF005
    if AHEAD > 0:
        tl.debug_barrier()  # or the compiler puts the loads off until their products
    acc = tl.zeros([WARPS, BLOCK_N, BLOCK_M], tl.float32)
    count: tl.constexpr = (KP + 32 * WARPS - 1) // (32 * WARPS)
    for index in tl.static_range(count):
        if index + AHEAD < count:
            inputs = inputs + (_load_block(x, 0, M, index + AHEAD, K, KP, BLOCK_M, WARPS),)  # noqa: RUF005
        if index < PRELOAD:  # noqa: SIM108
            b = blocks[index]
        else:
            b = _load_block(weight, first, size, index, K, KP, BLOCK_N, WARPS)
        a = inputs[index]
        acc = tl.dot(_as_first(b.to(a.dtype), BLOCK_N, WARPS), _as_second(a, BLOCK_M, WARPS), acc, input_precision="ieee")
    return tl.trans(_sum_of_warps(acc, WARPS))


@triton.jit
def _load_block(states, first, limit, index: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, COUNT: tl.constexpr, WARPS: tl.constexpr):
    """Load 32 inputs for each warp of COUNT lines, (8, WARPS, COUNT / 8, 32): a thread's eight inputs are neighbours in memory."""
    line = first + (tl.arange(0, 8)[:, None] + tl.arange(0, COUNT // 8)[None, :] * 8)[:, None, :, None]
    k = index * 32 * WARPS + (tl.arange(0, WARPS)[:, None] * 32 + tl.arange(0, 32)[None, :])[None, :, None, :]
    mask = line < limit
    if KP % (32 * WARPS) != 0:
        mask = mask & (k < KP)
    return tl.load(states + line.to(tl.int64) * K + k, mask=mask, other=0.0)


@triton.jit
def _as_first(block, COUNT: tl.constexpr, WARPS: tl.constexpr):
    """Name the inputs in the order in which a matrix unit's threads hold them, so that nothing has to move: (WARPS, COUNT, 32)."""
    block = tl.reshape(block, [8, WARPS, COUNT // 8, 4, 4, 2])
    return tl.reshape(tl.permute(block, [1, 2, 0, 4, 3, 5]), [WARPS, COUNT, 32])


@triton.jit
def _as_second(block, COUNT: tl.constexpr, WARPS: tl.constexpr):
    """The same, (WARPS, 32, COUNT)."""
    block = tl.reshape(block, [8, WARPS, COUNT // 8, 4, 4, 2])
    return tl.reshape(tl.permute(block, [1, 4, 3, 5, 2, 0]), [WARPS, 32, COUNT])


@triton.jit
def _sum_of_warps(acc, WARPS: tl.constexpr):
    """Add up the warps' sums, each number in one thread: tl.sum would shuffle every one of them."""
    acc = tl.permute(acc, [1, 2, 0])
    if WARPS >= 8:
        first, second = tl.split(tl.reshape(acc, [acc.shape[0], acc.shape[1], WARPS // 2, 2]))
        acc = first + second
    first, second = tl.split(tl.reshape(acc, [acc.shape[0], acc.shape[1], 2, 2]))
    first, second = tl.split(first + second)
    return first + second


@triton.jit
def add_up(acc, shares, arrived, tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr):
    """Leave this program's share of a tile; return whether it is the last that does, and then the sum, in one order whoever came last."""
    place = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(shares + (tile * SPLITS + tl.program_id(2)) * BLOCK_M * BLOCK_N + place, acc)
    is_last = is_last_to_arrive(arrived + tile, SPLITS)
    if is_last:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for split in tl.static_range(SPLITS):
            acc += tl.load(shares + (tile * SPLITS + split) * BLOCK_M * BLOCK_N + place, cache_modifier=".cg")
    return is_last, acc


@triton.jit
def is_last_to_arrive(arrived, SPLITS: tl.constexpr):
    """Count this program in when all of it has stored; say whether it is the last, which sees what the others stored."""
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.store(arrived, 0)
    return is_last
