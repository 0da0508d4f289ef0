"""Time the kernels of a decoding step one by one, with other tiles too, to choose those in chatsft/generation/kernel_step.py.

    python -m tests.benchmarks.decode_kernels [--depth 20] [--rows 32] [--length 640] [--top 4]

Every kernel is launched once for each layer in one captured graph, so that its weights come from memory and not from the cache. Prints
microseconds a launch and the rate at which weights, or keys and values, are read, the best tiles first; then one whole step. Needs a GPU.
"""

import argparse
import itertools
from contextlib import suppress

import torch
from triton.runtime.errors import OutOfResources

from chatsft.generation import kernel_step
from chatsft.generation.decoder import Workspace
from chatsft.generation.kernel_step import KernelChain, Launch, Tile
from chatsft.generation.slots import HALTED, LENGTH
from tests.benchmarks.generation import build_ours

KINDS = {"qkv": 0, "attend": 1, "o": 2, "up": 3, "down": 4}
WIDEST = 200 * 1024
FEW_ROWS_TILES = [(16, 128, 4), (16, 256, 8), (32, 256, 8)]
FEW_ROWS_LOADS = [(4, 0, 1, 128), (5, 0, 1, 128), (5, 2, 1, 168), (8, 3, 1, 168), (4, 0, 4, 128), (4, 0, 5, 128), (3, 1, 5, 128)]
"""Blocks of weights preloaded and of inputs ahead, programs for each tile, registers."""


def microseconds(launches: list[Launch], repeats: int = 20) -> float:
    """Return the time of one launch, from replays of a graph of all of them."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end) / repeats / len(launches)


def tiles(rows: int) -> list[Tile]:
    if rows == 1:
        sizes = itertools.product((1, 2, 4, 8, 16), (512, 1024, 2048, 4096, 8192), (2, 4, 8))
        return [Tile(*size) for size in sizes if 16 <= size[0] * size[1] / size[2] / 32 <= 128]
    few = [Tile(*size, 1, *loads) for size in FEW_ROWS_TILES for loads in FEW_ROWS_LOADS] if rows <= kernel_step.FEW_ROWS else []
    every = [Tile(*sizes) for sizes in itertools.product((16, 32, 64), (128, 256), (4, 8), (3, 4, 6))]
    return few + [tile for tile in every if (max(16, rows) + tile.num_outputs) * tile.num_inputs * tile.num_stages * 2 <= WIDEST]


def of_kind(chain: KernelChain, kind: str) -> list[Launch]:
    """Return a kind's launches, one for each layer; the head's, many times larger, alone."""
    return chain.launches[-1:] if kind == "head" else chain.launches[1:-1][KINDS[kind] :: len(KINDS)]


def time_products(model, workspace: Workspace, top: int) -> None:
    """Print for every product the tile in use and the fastest ones."""
    choose, found = kernel_step.choose_tile, {}
    for tile in [None, *tiles(workspace.slots.num_slots)]:
        kernel_step.choose_tile = choose if tile is None else lambda *shape, tile=tile: tile
        chain = KernelChain(model, workspace.cache, workspace.dtype)
        for kind in ("qkv", "o", "up", "down", "head"):
            launches = of_kind(chain, kind)
            inputs = launches[0].constants["K"] // (1 if tile is None else tile.splits)
            if tile is not None and (inputs <= tile.num_inputs // 2 or inputs < tile.preload * tile.num_inputs):
                continue
            with suppress(OutOfResources):  # a tile that does not fit after all
                found.setdefault(kind, []).append((microseconds(launches), tile, launches[0].constants))
    kernel_step.choose_tile = choose
    for kind, times in found.items():
        for time, tile, constants in [times[0], *sorted(times[1:], key=lambda entry: entry[0])[:top]]:
            read = 2 * constants["K"] * (constants["N_0"] + 2 * constants["N_REST"])
            print(f"{kind:<7}{time:8.2f} us {read / time / 1e6:6.2f} TB/s  {tile or 'in use'}", flush=True)


def time_attention(model, workspace: Workspace, length: int) -> None:
    config, rows = model.config, workspace.slots.num_slots
    choices = kernel_step.choose_splits, kernel_step.choose_keys
    for keys, splits in itertools.product((16, 32, 64), (1, 2, 4, 8, 16)):
        kernel_step.choose_splits = lambda num_pairs, chosen=splits: chosen
        kernel_step.choose_keys = lambda head_dim, itemsize, chosen=keys: chosen
        time = microseconds(of_kind(KernelChain(model, workspace.cache, workspace.dtype), "attend"))
        read = 4 * rows * length * config.num_key_value_heads * config.head_dim
        print(f"attend {time:8.2f} us {read / time / 1e6:6.2f} TB/s  {keys} keys at a time, {splits} splits", flush=True)
    kernel_step.choose_splits, kernel_step.choose_keys = choices


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=640)
    parser.add_argument("--top", type=int, default=4)
    parser.add_argument("--in_turn", action="store_true", help="launch every kernel after the one before has ended")
    parser.add_argument("--only_step", action="store_true", help="time what is in use, and no other tiles")
    options = parser.parse_args()
    if options.in_turn:
        kernel_step.can_launch_early = lambda device: False
    model = build_ours(options.depth, "2025")
    workspace = Workspace(model, options.rows, 1024)
    workspace.slots.fields[LENGTH] = options.length
    workspace.slots.fields[HALTED] = 0  # so that all attend
    chain = workspace.kernels.chain
    for kind in (*KINDS, "head"):
        print(f"{kind:<7}{microseconds(of_kind(chain, kind)):8.2f} us  in use", flush=True)
    print(f"embed  {microseconds(chain.launches[:1]):8.2f} us")
    print(f"choose {microseconds([chain.advance(None)]):8.2f} us")
    workspace.slots.fields[LENGTH], workspace.slots.fields[HALTED] = options.length, 0
    print(f"step   {microseconds([chain.logits]):8.2f} us without choosing", flush=True)
    if not options.only_step:
        time_attention(model, workspace, options.length)
        time_products(model, workspace, options.top)


if __name__ == "__main__":
    main()
