"""What it costs to guard every step against faults: steps with the guard and without it, in turns.

python -m tests.benchmarks.guard [--depth 12] [--rows 32] [--steps 30] [--turns 3]
torchrun --nproc_per_node 2 -m tests.benchmarks.guard --turns 2

The guard measures all gradients, lets the device decide about each step and, on several processes, averages the gradients itself.
Without it, Trainer's own step runs. Each run is printed when it is done. Needs GPUs with bfloat16.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import Trainer, TrainerCallback

from chatsft.arguments import ChatArguments
from chatsft.data.collator import FlatteningCollator
from chatsft.data.packing import ConversationRows, pack_rows
from chatsft.model.head_loss import chunk_size
from chatsft.trainer import ChatTrainer
from tests.benchmarks.training import LENGTH, build_model, conversations


class UnguardedTrainer(ChatTrainer):
    """Train as Trainer does."""

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        return Trainer.training_step(self, *args, **kwargs)


class Stopwatch(TrainerCallback):
    """Time the steps after the first ones, without waiting for the device between them."""

    def __init__(self, warmup: int):
        self.warmup, self.seconds = warmup, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.warmup, state.max_steps):
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds


def measure(kind: type, depth: int, rows: int, steps: int, warmup: int = 8) -> float:
    """Return the milliseconds of a step."""
    torch._dynamo.reset()
    gc.collect()  # the trainer before
    torch.cuda.empty_cache()
    args = ChatArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        max_steps=steps + warmup,
        bf16=True,
        torch_compile=True,
        logging_steps=10_000,
        disable_tqdm=True,
    )
    data = conversations(rows * args.world_size * 60, 65536)
    packed = pack_rows([len(ids) for ids in data["input_ids"]], LENGTH)[: rows * args.world_size * 8] * (1 + (steps + warmup) // 8)
    watch = Stopwatch(warmup)
    kind(
        model=build_model(depth, 65536, "2025"),
        args=args,
        train_dataset=ConversationRows(data, packed),
        data_collator=FlatteningCollator(LENGTH, 0, max(map(len, packed)), chunk_size(rows * LENGTH)),
        callbacks=[watch],
    ).train()
    return watch.seconds / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"depth": 12, "rows": 32, "steps": 30, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    PartialState()  # gives this process its GPU
    times = {UnguardedTrainer: [], ChatTrainer: []}
    for _ in range(options.turns):
        for kind, milliseconds in times.items():
            milliseconds.append(measure(kind, options.depth, options.rows, options.steps))
            report({"trainer": kind.__name__, "ms": round(milliseconds[-1], 2)})
    without, guarded = (statistics.median(milliseconds) for milliseconds in times.values())
    result = {"depth": options.depth, "rows": options.rows, "without_ms": round(without, 2), "guarded_ms": round(guarded, 2)}
    report(result | {"cost_pct": round(100 * (guarded / without - 1), 2)})
    if dist.is_initialized():
        dist.destroy_process_group()


def report(result: dict) -> None:
    if PartialState().is_main_process:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
