"""One GPU against two: time and memory of a step, with and without what makes it scale, and the same losses.

    python -m tests.benchmarks.scaling [--depths 12 20] [--rows 32] [--parts one ddp fsdp2 others]
    python -m tests.benchmarks.scaling --estimate

The first needs two GPUs with bfloat16 and starts `accelerate launch` once for each part (one process, ddp.yaml, fsdp2.yaml, and ddp.yaml
again without what makes it scale), on the workload of tests.benchmarks.training: `rows` rows of 2048 tokens per GPU and step. The first
three also train a small model on the same 16 rows 20 times over, whose losses have to agree within 0.01. Every figure is printed when it is
there; a part that fails does not keep the others from running. The second prints the table of docs/scaling.md from its formulas.
"""

import argparse
import faulthandler
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from chatsft.arguments import ChatArguments
from chatsft.data.collator import FlatteningCollator
from chatsft.data.packing import ConversationRows, pack_rows
from chatsft.model.head_loss import chunk_size
from chatsft.trainer import ChatTrainer
from tests.benchmarks.training import LENGTH, StepTimer, build_model, conversations
from tests.fault_cases import forget_state

LAUNCHES = {"one": ("single_gpu", 1), "ddp": ("ddp", 2), "fsdp2": ("fsdp2", 2), "others": ("ddp", 2)}
VOCABULARY = 65536
WARMUP, PROBES = 4, 3
SAME_ROWS, SAME_STEPS, SAME_DEPTH, SAME_VOCABULARY = 16, 20, 4, 8192
TOLERANCE = 0.01
STUCK = 120
"""Seconds after which a training counts as stuck; then every thread says where."""
GIGA = 1e9
RATE, BANDWIDTH = 440e12, 300e9
"""What the estimate assumes: operations per second of one GPU in training, bytes per second of a collective into and out of each GPU."""


class ReplicatedMuon(ChatTrainer):
    """Every process steps every matrix, as without sharing."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        super().create_optimizer(model).process_group = None
        return self.optimizer


class OptimizerProbe(TrainerCallback):
    """Time the optimizer alone in the last steps, which wait for the GPU."""

    def __init__(self, first_step: int):
        self.first_step, self.start, self.seconds = first_step, 0.0, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step >= self.first_step:
            torch.cuda.synchronize()
            self.start = time.perf_counter()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step >= self.first_step:
            torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.start)


def build_trainer(kind: type[ChatTrainer], model, rows: list, data, generation: str, callbacks: Iterable = (), **settings) -> ChatTrainer:
    settings = {"bf16": True, "torch_compile": True, "disable_tqdm": True} | settings
    args = ChatArguments(output_dir=tempfile.mkdtemp(), optimizer=f"muon_{generation}", **settings)
    collator = FlatteningCollator(LENGTH, 0, max(map(len, rows)), chunk_size(args.per_device_train_batch_size * LENGTH))
    return kind(model=model, args=args, train_dataset=ConversationRows(data, rows), data_collator=collator, callbacks=[*callbacks])


def measure(kind: type[ChatTrainer], depth: int, rows_per_gpu: int, steps: int, **settings) -> dict:
    """Time full optimizer steps and weigh what one process holds."""
    begin_anew()
    world_size, begin = PartialState().num_processes, time.perf_counter()
    total, timer, probe = WARMUP + steps + PROBES, StepTimer(WARMUP), OptimizerProbe(WARMUP + steps)
    count = rows_per_gpu * world_size * total
    data = conversations(count * 6, VOCABULARY)
    rows = pack_rows([len(ids) for ids in data["input_ids"]], LENGTH)[:count]
    model = build_model(depth, VOCABULARY, "2025")
    settings |= {"per_device_train_batch_size": rows_per_gpu, "max_steps": total, "logging_steps": 10_000}
    trainer = build_trainer(kind, model, rows, data, "2025", [timer, probe], **settings)
    timer.trainer = trainer
    trainer.train()
    seconds, tokens = timer.read(steps)
    tokens = trainer.accelerator.reduce(torch.tensor(float(tokens), device=trainer.args.device)).item()
    return {
        "ms": round(seconds * 1e3, 1),
        "optimizer_ms": round(min(probe.seconds) * 1e3, 1),
        "real_tok_s": int(tokens / seconds),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "optimizer_gib": round(state_bytes(trainer.optimizer) / 2**30, 2),
        "took_s": round(time.perf_counter() - begin, 1),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Count the bytes of optimizer state that this process holds."""
    tensors = [tensor for state in optimizer.state.values() for tensor in state.values()]
    held = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def train_for_losses(generation: str) -> dict:
    """Train a small model on a global batch of 16 rows, the same at every step, so that it learns them."""
    begin_anew()
    torch.manual_seed(0)
    data = conversations(SAME_ROWS * 6, SAME_VOCABULARY)
    rows = pack_rows([len(ids) for ids in data["input_ids"]], LENGTH)[:SAME_ROWS] * SAME_STEPS
    batch = SAME_ROWS // 2 // PartialState().num_processes
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 2, "max_steps": SAME_STEPS}
    settings["init_lr_frac"] = 0.1  # at pretraining's rates the loss jumps now and then, and how far depends on the last bit
    trainer = build_trainer(ChatTrainer, build_model(SAME_DEPTH, SAME_VOCABULARY, generation), rows, data, generation, **settings)
    trainer.train()
    return {"generation": generation, "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log]}


def begin_anew() -> None:
    """Forget the training before: accelerate's state, memory, and compiled graphs, of which a process keeps only so many."""
    forget_state()
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def run_part(part: str, options: argparse.Namespace) -> None:
    """Do one launch's share and print its results, one JSON object a line."""
    PartialState()  # gives this process its GPU
    variants = [("alone" if part == "one" else "shared", depth, ChatTrainer, {}) for depth in options.depths]
    if part == "others":
        variants = [("replicated", depth, ReplicatedMuon, {}) for depth in options.depths]
        variants += [("shared, layers in one graph", options.depths[0], ChatTrainer, {"compile_scope": "stack"})]
    for name, depth, kind, settings in variants:
        faulthandler.dump_traceback_later(STUCK, exit=True)
        report({"part": part, "depth": depth, "muon": name} | measure(kind, depth, options.rows, options.steps, **settings))
    for generation in ("2025", "2026") if part != "others" else ():
        faulthandler.dump_traceback_later(STUCK, exit=True)
        report({"part": part} | train_for_losses(generation))
    faulthandler.cancel_dump_traceback_later()
    if dist.is_initialized():
        dist.destroy_process_group()


def report(result: dict) -> None:
    if PartialState().is_main_process:
        print(json.dumps(result), flush=True)


def launch(part: str, options: argparse.Namespace) -> list[dict]:
    config, processes = LAUNCHES[part]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    command += ["--num_processes", str(processes), "--main_process_port", "0", "-m", "tests.benchmarks.scaling", "--part", part]
    command += ["--rows", str(options.rows), "--steps", str(options.steps), "--depths", *map(str, options.depths)]
    results, environment = [], {"OMP_NUM_THREADS": "8", **os.environ}  # weights are drawn on the host, by one thread otherwise
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith('{"part"'):
                print(line, end="", flush=True)
                results.append(json.loads(line))
    if process.returncode:
        print(f"the launch of {part} ended with code {process.returncode}", flush=True)
    return results


def compare(results: list[dict]) -> None:
    """Print the tables of docs/benchmarks.md and docs/scaling.md, and how far the losses lie apart."""
    one = {result["depth"]: result for result in results if result["part"] == "one" and "depth" in result}
    print(
        "\n| model | GPUs | Muon | ms per step | of it optimizer | tokens/s | x one GPU | peak GiB | optimizer GiB |\n" + "|---" * 9 + "|"
    )
    for result in (result for result in results if "depth" in result):
        ratio = result["real_tok_s"] / one[result["depth"]]["real_tok_s"] if result["depth"] in one else math.nan
        gpus = {"one": "1", "fsdp2": "2, fsdp2"}.get(result["part"], "2, ddp")
        columns = [f"d{result['depth']}", gpus, result["muon"], result["ms"], result["optimizer_ms"], f"{result['real_tok_s']:,}"]
        print("| " + " | ".join(map(str, [*columns, f"{ratio:.2f}", result["peak_gib"], result["optimizer_gib"]])) + " |")
    print()
    for depth, result in one.items():
        expected = estimate(depth, 2, result["ms"] / 1e3)
        print(f"d{depth}, 2 GPUs: estimated {expected['seconds'] * 1e3:.1f} ms from this {result['ms']} ms on one")
    alone = {result["generation"]: result["losses"] for result in results if result["part"] == "one" and "losses" in result}
    for result in (result for result in results if result["part"] != "one" and "losses" in result and alone):
        apart = max(abs(a - b) for a, b in zip(result["losses"], alone[result["generation"]], strict=True))
        first, last = result["losses"][0], result["losses"][-1]
        verdict = "same" if apart <= TOLERANCE else f"NOT within {TOLERANCE}"
        print(f"{result['part']}, {result['generation']}: losses {first:.4f} to {last:.4f}, at most {apart:.4f} from one GPU: {verdict}")


def estimate(depth: int, processes: int, alone: float | None = None, bandwidth: float = BANDWIDTH) -> dict[str, float]:
    """Apply the formulas of docs/scaling.md to DDP with 65,536 tokens per GPU; `alone` are the seconds of a step on one GPU."""
    width, tokens = 64 * depth, 65536
    matrices, table = 12 * depth * width**2, VOCABULARY * width
    muon = 5 * depth * (4 * 6 * width**3 + 2 * (16 + 2) * width**3) / RATE
    alone = 6 * (matrices + table) * tokens / RATE + muon if alone is None else alone
    others = (processes - 1) / processes
    gradients = 2 * others * 4 * (matrices + 2 * table)
    gather, tail = others * 4 * matrices, 2 * others * 4 * table
    exposed = max(gradients / bandwidth - 2 / 3 * (alone - muon), tail / bandwidth) + max(gather / bandwidth - muon / processes, 0)
    seconds = alone - muon * others + exposed
    return {
        "alone": alone,
        "gradients": gradients / GIGA,
        "gather": gather / GIGA,
        "muon_alone": muon,
        "muon": muon / processes,
        "exposed": exposed,
        "seconds": seconds,
        "efficiency": alone / seconds,
    }


def print_estimates() -> None:
    print("| model | GPUs | GB/s | gradients, GB | gather, GB | Muon, ms | not hidden, ms | step, ms | x one GPU |")
    print("|---" * 9 + "|")
    cases = [(processes, BANDWIDTH) for processes in (1, 2, 8, 64)] + [(64, 25e9)]
    for depth in (12, 20):
        for processes, bandwidth in cases:
            figures = estimate(depth, processes, bandwidth=bandwidth)
            sizes = [f"{figures['gradients']:.2f}", f"{figures['gather']:.2f}"]
            times = [f"{figures[key] * 1e3:.1f}" for key in ("muon", "exposed", "seconds")]
            columns = [f"d{depth}", str(processes), f"{bandwidth / GIGA:.0f}", *sizes, *times, f"{processes * figures['efficiency']:.2f}"]
            print(f"| {' | '.join(columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--rows", type=int, default=32, help="rows of 2048 tokens per GPU and step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=LAUNCHES, default=list(LAUNCHES))
    parser.add_argument("--estimate", action="store_true", help="print the paper estimate alone")
    parser.add_argument("--part", choices=LAUNCHES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.estimate:
        print_estimates()
    elif options.part:
        run_part(options.part, options)
    else:
        results = [result for part in options.parts for result in launch(part, options)]
        compare(results)
        sys.exit({result["part"] for result in results} != set(options.parts))


if __name__ == "__main__":
    main()
