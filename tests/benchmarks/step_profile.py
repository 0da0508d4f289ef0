"""Where the time of a step goes on one GPU, on the other, and on both together.

    python -m tests.benchmarks.step_profile [--cases alone ddp fsdp2 apart ddp-step fsdp2-keep other] [--depth 12] [--traces FOLDER]

Needs two GPUs with bfloat16. Each case trains on the workload of tests.benchmarks.scaling: first some steps against the clock, then four
under torch's profiler, which watches the GPU and the calls to it. "alone" takes GPU 0, "other" GPU 1, "apart" both at once, as two runs
that know nothing of each other; "-step" is compile_scope: step, "-keep" FSDP2 that gathers weights once a step. Of each process it prints
what a step takes of the GPU (by kind of kernel and of collective, with what of these no other kernel covers), how long the GPU has nothing
to do and between which kernels, how long the host waits, and how far ahead of the GPU it launches: microseconds mean that the host is the
slower one. Of two processes it prints who comes later to the collectives. Cases that no longer fit into --seconds are left out. --traces
keeps the traces, for Perfetto.
"""

import argparse
import faulthandler
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback

from chatsft.data.packing import pack_rows
from chatsft.trainer import ChatTrainer
from tests.benchmarks.scaling import build_trainer
from tests.benchmarks.training import LENGTH, build_model, conversations

CASES = {
    "alone": {"devices": "0"},
    "ddp": {"config": "ddp"},
    "fsdp2": {"config": "fsdp2"},
    "apart": {"devices": "01"},
    "ddp-step": {"config": "ddp", "scope": "step"},
    "fsdp2-keep": {"config": "fsdp2", "options": ["--fsdp_reshard_after_forward", "false"]},
    "other": {"devices": "1"},
}
WARMUP, TIMED, WATCHED = 6, 10, 4
KINDS = {
    "nccl": "nccl",
    "memory": "memcpy|memset",
    "attention": "flash|fmha|attention|attn",
    "gemm": "gemm|nvjet|cutlass|xmma|cublas|matmul|_mm_|_bmm_|sm90|triton_tem",
    "other": "",
}
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")  # the whole device is waited for at the end of the watch alone
SHORTEST_CASE = 20
"""Seconds that a case needs at least."""


class Span(NamedTuple):
    """Something that ran, in microseconds."""

    start: float
    end: float
    name: str
    correlation: int


class StepWatch(TrainerCallback):
    """Time some steps by the clock, waiting for the device before and after them alone, then record some more."""

    def __init__(self, trace: Path):
        self.trace, self.start, self.seconds = trace, 0.0, 0.0
        activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
        self.profiler = profile(activities=[activity], schedule=schedule(wait=0, warmup=1, active=WATCHED, repeat=1))

    def on_step_end(self, args, state, control, **kwargs):
        place = state.global_step - WARMUP - TIMED
        if place in (-TIMED, 0, 1, 1 + WATCHED) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if place == -TIMED:
            self.start = time.perf_counter()
        elif place == 0:
            self.seconds = (time.perf_counter() - self.start) / TIMED
            self.profiler.start()
        elif place == 1 + WATCHED:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))
        elif place > 0:
            self.profiler.step()


def watch(options: argparse.Namespace) -> None:
    """Train one case and write down what this process saw, beside its trace."""
    state = PartialState(cpu=not torch.cuda.is_available())  # gives this process its GPU
    steps = WARMUP + TIMED + 1 + WATCHED
    at_once = options.rows * state.num_processes
    data = conversations(at_once * 4 * 8, options.vocabulary)
    rows = (pack_rows([len(ids) for ids in data["input_ids"]], LENGTH)[: at_once * 4] * steps)[: at_once * steps]
    place = options.place + state.process_index
    trace = Path(options.traces) / f"{options.case}-{place}.trace.json"
    callback = StepWatch(trace)
    settings = {"per_device_train_batch_size": options.rows, "max_steps": steps, "logging_steps": 10_000, "compile_scope": options.scope}
    if not torch.cuda.is_available():
        settings |= {"bf16": False, "torch_compile": False, "use_cpu": True}
    model = build_model(options.depth, options.vocabulary, "2025")
    build_trainer(ChatTrainer, model, rows, data, "2025", [callback], **settings).train()
    seen = {"place": place, "ms": callback.seconds * 1e3} | describe(*read_trace(trace))
    (Path(options.traces) / f"{options.case}-{place}.seen.json").write_text(json.dumps(seen))
    if dist.is_initialized():
        dist.destroy_process_group()


def read_trace(path: Path) -> tuple[list[Span], list[Span]]:
    """Return what ran on the GPU, in order, and the calls to it."""
    device, calls = [], []
    for event in json.loads(path.read_text())["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            device.append(to_span(event))
        elif event.get("ph") == "X" and event.get("cat") in ("cuda_runtime", "cuda_driver"):
            calls.append(to_span(event))
    return sorted(device), sorted(calls)


def to_span(event: dict) -> Span:
    return Span(event["ts"], event["ts"] + event.get("dur", 0), event["name"], event.get("args", {}).get("correlation", -1))


def kind_of(name: str) -> str:
    """Sort a kernel by its name.

    >>> kind_of("ncclDevKernel_AllReduce_Sum_f32_RING_LL"), kind_of("nvjet_tst_128x256"), kind_of("triton_red_fused_add_3")
    ('nccl', 'gemm', 'other')
    """
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))


def union(spans: list[Span]) -> list[tuple[float, float]]:
    """Join spans that overlap.

    >>> union([Span(0, 2, "", 0), Span(1, 3, "", 0), Span(5, 6, "", 0)])
    [(0, 3), (5, 6)]
    """
    joined = []
    for start, end, *_ in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def length(spans: list[Span]) -> float:
    return sum(end - start for start, end in union(spans))


def describe(device: list[Span], calls: list[Span]) -> dict:
    """Sum up a trace, in milliseconds a step."""
    if not device:
        return {}
    sums = Counter()
    for span in device:
        sums[kind_of(span.name)] += (span.end - span.start) / 1e3 / WATCHED
    computing = [span for span in device if kind_of(span.name) != "nccl"]
    launched = {call.correlation: call.start for call in calls}
    ahead = [span.start - launched[span.correlation] for span in device if span.correlation in launched]
    waits = [(call.end - call.start) / 1e3 / WATCHED for call in calls if call.name.startswith(WAITS)]
    total = max(span.end for span in device) - device[0].start
    return {
        "watched_ms": total / 1e3 / WATCHED,
        "busy_ms": length(device) / 1e3 / WATCHED,
        "kinds": {kind: round(sums[kind], 2) for kind in KINDS},
        "collective_ms": sum_collectives(device),
        "exposed_nccl_ms": (length(device) - length(computing)) / 1e3 / WATCHED,
        "kernels": len(device) / WATCHED,
        "waits_ms": sum(waits),
        "waits": len(waits) / WATCHED,
        "ahead_us": [round(quantile) for quantile in statistics.quantiles(ahead, n=4)] if len(ahead) > 1 else [],
        "gaps": find_gaps(device),
        "collectives": [(span.start, span.end, span.name[:40]) for span in device if kind_of(span.name) == "nccl"],
    }


def sum_collectives(device: list[Span]) -> dict[str, str]:
    """Return milliseconds and number a step of each kind of collective."""
    lasted, times = Counter(), Counter()
    for span in device:
        if kind_of(span.name) == "nccl":
            name = span.name.replace("ncclDevKernel_", "").partition("_")[0]
            lasted[name] += (span.end - span.start) / 1e3 / WATCHED
            times[name] += 1 / WATCHED
    return {name: f"{lasted[name]:.2f} in {times[name]:.0f}" for name in lasted}


def find_gaps(device: list[Span]) -> list[tuple[float, float, str, str]]:
    """Return where the GPU has nothing to do, the longest in sum first: ms a step, times a step, the kernels before and after."""
    lasted, times, last = Counter(), Counter(), device[0]
    for span in device[1:]:
        if span.start > last.end:
            between = (last.name, span.name)
            lasted[between] += (span.start - last.end) / 1e3 / WATCHED
            times[between] += 1 / WATCHED
        last = max(last, span, key=lambda one: one.end)
    return [(lasted[between], times[between], *between) for between, _ in lasted.most_common(10)]


def print_case(case: str, seen: list[dict], num_gaps: int) -> None:
    for one in seen:
        print(f"{case}, {one['place']}: {one['ms']:.1f} ms a step", end="")
        if "busy_ms" not in one:
            print(", nothing ran on a GPU")
            continue
        print(
            f"; watched {one['watched_ms']:.1f}: GPU busy {one['busy_ms']:.1f}, {one['kernels']:.0f} kernels, "
            f"nccl not covered {one['exposed_nccl_ms']:.2f}; host waits {one['waits_ms']:.1f} ms in {one['waits']:.0f} calls, "
            f"ahead by us (quartiles) {one['ahead_us']}"
        )
        print("   kernels, ms: " + ", ".join(f"{kind} {value}" for kind, value in one["kinds"].items()), one["collective_ms"] or "")
    for lasted, times, before, after in (seen[0].get("gaps", []) if seen else [])[:num_gaps]:
        print(f"   idle {lasted:.2f} ms in {times:.1f}: {shorten(before)} > {shorten(after)}")
    if len(seen) == 2 and case != "apart" and all(one.get("collectives") for one in seen):
        print_arrivals(*(one["collectives"] for one in seen))


def shorten(name: str) -> str:
    return name.replace("void ", "").replace("at::native::", "")[:48]


def print_arrivals(first: list, second: list) -> None:
    """Print how far apart two processes begin their collectives, by clocks set so that they end them together."""
    pairs = []
    for name in {name for *_, name in first} & {name for *_, name in second}:  # those of one kind come in one order
        mine, theirs = ([span for span in spans if span[2] == name] for spans in (first, second))
        number = min(len(mine), len(theirs))
        pairs += zip(mine[-number:], theirs[-number:], strict=True)  # both traces end when all is done
    if not pairs:
        return
    shift = statistics.median(one[1] - other[1] for one, other in pairs)
    late = [(one[0] - other[0] - shift) / 1e3 for one, other in pairs]
    shortest = sum(min(one[1] - one[0], other[1] - other[0]) for one, other in pairs) / 1e3 / WATCHED
    print(
        f"   collectives: {len(late) / WATCHED:.0f} a step, {shortest:.2f} ms once both are there; process 0 comes later by "
        f"{statistics.mean(late):.3f} ms in the mean ({min(late):.2f} to {max(late):.2f})"
    )


def start(case: str, options: argparse.Namespace, seconds: float) -> list[subprocess.Popen]:
    """Start the processes of a case."""
    here, chosen = [sys.executable, "-m", "tests.benchmarks.step_profile"], CASES[case]
    own = ["--case", case, "--scope", chosen.get("scope", "layer"), "--depth", str(options.depth), "--rows", str(options.rows)]
    own += ["--vocabulary", str(options.vocabulary), "--seconds", str(seconds), "--traces", options.traces]
    environment = {"OMP_NUM_THREADS": "8", **os.environ}
    if "devices" in chosen:
        return [
            subprocess.Popen(
                [*here, *own, "--place", device], stdout=subprocess.DEVNULL, env={**environment, "CUDA_VISIBLE_DEVICES": device}
            )
            for device in chosen["devices"]
        ]
    launcher = ["accelerate.commands.launch", "--config_file", f"accelerate_configs/{chosen['config']}.yaml", "--num_processes", "2"]
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"], launcher = "true", ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    else:
        launcher += ["--main_process_port", "0", *chosen.get("options", [])]
    command = [sys.executable, "-m", *launcher, "-m", *here[2:], *own]
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)]


def run_case(case: str, options: argparse.Namespace, seconds: float) -> None:
    began = time.perf_counter()
    codes = [process.wait() for process in start(case, options, seconds)]  # each ends itself in time, see main
    if any(codes):
        print(f"{case}: ended with {codes}")
    print_case(case, [json.loads(path.read_text()) for path in sorted(Path(options.traces).glob(f"{case}-?.seen.json"))], options.gaps)
    print(f"   took {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--traces", help="folder to keep the traces in")
    for name, default in {"depth": 12, "rows": 32, "vocabulary": 65536, "seconds": 150, "gaps": 5}.items():
        parser.add_argument(f"--{name}", type=float if name == "seconds" else int, default=default)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--scope", default="layer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        faulthandler.dump_traceback_later(options.seconds, exit=True)  # nobody else would end a process that is stuck
        watch(options)
        return
    options.traces = options.traces or tempfile.mkdtemp()
    Path(options.traces).mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + options.seconds
    for case in options.cases:
        left = end - time.perf_counter()
        if left < SHORTEST_CASE:
            print(f"{case}: no time left")
        else:
            run_case(case, options, left)


if __name__ == "__main__":
    main()
