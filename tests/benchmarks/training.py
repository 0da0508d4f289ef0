"""Training throughput and memory through ChatTrainer, on random weights and synthetic conversations.

    python -m tests.benchmarks.training [--yardstick yardstick.py] [--cases d12 d20] [--memory]
    python -m tests.benchmarks.training --cases "d8 layer" "d8 stack" "d8 step"
    PYTHONPATH=TORCHAO python -m tests.benchmarks.training --cases d12 d20 --tried
    python -m tests.benchmarks.training --reference model_name_or_path=D8 tokenizer_path=TOKENIZER data_root=DATA

Conversation lengths are log-normal (median 350 tokens, sigma 0.9, 32 to 2048), the second half of each is supervised. A model of depth d
is 64 d wide with heads of 128; a step takes 32 rows of 2,048 tokens. Needs a GPU with bfloat16. --yardstick names a script that prints
JSON lines with "name" and "real_tok_s" for the same workload; it runs first, and the ratio to its line of the same depth (d12 for the
models of 2026) is printed. The d8 cases have the shape of the reference run: 8 rows a step, vocabulary 8192. --memory adds the peak memory
of small batches beside the plan's estimate, --tried other weights (float8 needs torchao). --reference runs recipes/reference.yaml
twice with these overrides, the second time with everything cached. Each line is JSON. "idle_pct" is the share of a step in which the
GPU has nothing to do, under the profiler, which slows the host a little. A case that fails, or leaves out a step for want of memory,
prints "error" in place of its figures (the traceback goes to stderr), and the next one runs.
"""

import argparse
import gc
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache

import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback

from chatsft.arguments import ChatArguments
from chatsft.data.collator import FlatteningCollator
from chatsft.data.packing import ConversationRows, pack_rows
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.head_loss import chunk_size
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_checkpoint import layer_windows
from chatsft.model.packed_attention import prepare_attention
from chatsft.plan import estimate_memory
from chatsft.trainer import ChatTrainer

LENGTH = 2048
PEAK = 790e12  # bfloat16 matrix rate measured on one H200; mfu = 6 x matmul parameters x real tokens / time / PEAK
CASES = {
    "d12": {"depth": 12},
    "d12 as one graph": {"depth": 12, "compile_scope": "step"},
    "d12 less memory": {"depth": 12, "activation_memory_budget": 0.8},
    "d12 torch attention": {"depth": 12, "attention": "varlen"},
    "d20": {"depth": 20},
    "d20 as one graph": {"depth": 20, "compile_scope": "step"},
    "d20 less memory": {"depth": 20, "activation_memory_budget": 0.8},
    "d12 2026": {"depth": 12, "vocab_size": 32768, "year": "2026"},
    "d12 2026 as one graph": {"depth": 12, "vocab_size": 32768, "year": "2026", "compile_scope": "step"},
} | {f"d8 {scope}": {"depth": 8, "vocab_size": 8192, "rows": 8, "compile_scope": scope} for scope in ("layer", "stack", "step")}
MEMORY = [{"depth": depth, "rows": rows} for depth in (12, 20) for rows in (1, 2, 4, 8)] + [
    {"depth": 20, "rows": 8, "gradient_checkpointing": True},
    {"depth": 20, "rows": 1, "card_gb": 24},
]
TRIED = {
    "d12 with bfloat16 weights": {"depth": 12, "weights": "bfloat16"},
    "d12 with float8 products": {"depth": 12, "weights": "float8"},
    "d20 with float8 products": {"depth": 20, "weights": "float8"},
}


@cache
def conversations(count: int, vocab_size: int) -> Dataset:
    numbers, generator = random.Random(1), torch.Generator().manual_seed(1)
    rows = {"input_ids": [], "assistant_masks": []}
    for _ in range(count):
        length = max(32, min(LENGTH, int(numbers.lognormvariate(math.log(350), 0.9))))
        rows["input_ids"].append(torch.randint(0, vocab_size, (length,), generator=generator).tolist())
        rows["assistant_masks"].append([int(i >= length // 2) for i in range(length)])
    return Dataset.from_dict(rows)


def build_model(depth: int, vocab_size: int, year: str, attention: str | None = None) -> GPTForCausalLM:
    later = {}
    if year == "2026":
        later = {
            "rope_theta": 100000.0,
            "query_key_scale": 1.2,
            "layer_windows": layer_windows("SSSL", depth, LENGTH),
            "value_embedding_layers": [i for i in range(depth) if i % 2 == (depth - 1) % 2],
            "residual_scaling": True,
            "smear": True,
            "backout": True,
        }
    width = 64 * depth
    config = GPTConfig(vocab_size=vocab_size, hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 128, **later)
    model = GPTForCausalLM._from_config(config, attn_implementation=attention or "varlen")
    prepare_attention(model, attention, packing=True)
    return model


def convert_weights(model: GPTForCausalLM, weights: str) -> None:
    """Hold all weights in bfloat16, or multiply by those of the layers in float8 (needs torchao)."""
    if weights == "bfloat16":
        model.to(torch.bfloat16)
    elif weights == "float8":
        from torchao.float8 import convert_to_float8_training

        convert_to_float8_training(model.model.layers)


class StepTimer(TrainerCallback):
    """Mark the end of each update on the GPU, with the tokens until then; the host never waits but once, when the warm-up is over."""

    def __init__(self, warmup: int):
        self.warmup, self.marks, self.trainer = warmup, [], None

    def on_step_end(self, args, state, control, **kwargs):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((event, self.trainer.throughput.tokens))
        if len(self.marks) == self.warmup:
            torch.cuda.synchronize()

    def read(self, steps: int) -> tuple[float, float]:
        """Return seconds and tokens per update over the steps after the warm-up."""
        torch.cuda.synchronize()
        (start, before), (end, after) = self.marks[self.warmup - 1], self.marks[self.warmup + steps - 1]
        return start.elapsed_time(end) / 1e3 / steps, (after - before) / steps


class IdleMeter(TrainerCallback):
    """Profile two updates, after two under the profiler that do not count, and add up the time in which the GPU runs nothing."""

    UPDATES = 4

    def __init__(self, first: int):
        self.first = first
        self.profiler = profile(activities=[ProfilerActivity.CUDA], schedule=schedule(wait=0, warmup=2, active=2, repeat=1))

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            self.profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first + self.UPDATES:
            torch.cuda.synchronize()
        if state.global_step > self.first:
            self.profiler.step()

    def read(self) -> float:
        """Return the idle share between the first and the last kernel, in per cent."""
        device = torch.autograd.DeviceType.CUDA
        spans = sorted((event.time_range.start, event.time_range.end) for event in self.profiler.events() if event.device_type == device)
        busy, reached = 0.0, spans[0][0]
        for start, end in spans:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return 100 * (1 - busy / (reached - spans[0][0]))


def train_steps(depth: int, vocab_size: int, year: str, attention: str | None, rows: int, steps: int, **settings) -> ChatTrainer:
    """Run full updates of ChatTrainer with `rows` rows of 2,048 tokens a step, all of which have to be made."""
    callbacks, weights = settings.pop("callbacks", []), settings.pop("weights", "float32")
    data = conversations(6 * 32 * 16, vocab_size)
    packed = pack_rows([len(ids) for ids in data["input_ids"]], LENGTH)[: rows * steps]
    args = ChatArguments(
        output_dir=tempfile.mkdtemp(),
        optimizer=f"muon_{year}",
        per_device_train_batch_size=rows,
        max_steps=steps,
        bf16=True,
        torch_compile=True,
        logging_steps=10_000,
        disable_tqdm=True,
        **settings,
    )
    model = build_model(depth, vocab_size, year, attention)
    convert_weights(model, weights)
    trainer = ChatTrainer(
        model=model,
        args=args,
        train_dataset=ConversationRows(data, packed),
        data_collator=FlatteningCollator(LENGTH, 0, max(map(len, packed)), chunk_size(rows * LENGTH)),
        callbacks=callbacks,
    )
    for callback in callbacks:
        callback.trainer = trainer
    trainer.train()
    left_out = [log["skipped_step"] for log in trainer.state.log_history if "skipped_step" in log]
    if left_out:  # what is measured of them is not a step
        raise RuntimeError(f"{len(left_out)} of {steps} steps were left out: {left_out[0]['0']}")
    return trainer


def measure(depth: int, vocab_size: int = 65536, year: str = "2025", attention: str | None = None, rows: int = 32, **settings) -> dict:
    """Time updates of 256 rows in all after a warm-up, and profile some more."""
    warmup, steps = 4, 256 // rows
    timer, idle = StepTimer(warmup), IdleMeter(warmup + steps)
    trainer = train_steps(depth, vocab_size, year, attention, rows, warmup + steps + IdleMeter.UPDATES, callbacks=[timer, idle], **settings)
    seconds, tokens = timer.read(steps)
    return {
        "attention": trainer.model.config._attn_implementation,
        "ms": round(seconds * 1e3, 1),
        "real_tok_s": int(tokens / seconds),
        "mem_gib": peak_memory(),
        "estimated_gib": round(sum(estimate_memory(trainer.model, trainer.args, rows * LENGTH).values()), 1),
        "mfu_pct": round(100 * 6 * trainer.throughput.matmul_parameters * tokens / seconds / PEAK, 1),
        "idle_pct": round(idle.read(), 1),
    }


def peak_memory() -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 1)


def measure_memory(depth: int, rows: int, card_gb: float | None = None, **settings) -> dict:
    """Return the peak memory of updates of a few rows beside the estimate; `card_gb` is all that tensors may take of the GPU."""
    size = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if card_gb is None else card_gb * 1e9 / size)
    trainer = train_steps(depth, 65536, "2025", None, rows, 2, **settings)
    estimate = sum(estimate_memory(trainer.model, trainer.args, rows * LENGTH).values())
    return {
        "mem_gib": peak_memory(),
        "estimated_gib": round(estimate, 1),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1),
    }


def attempt(function: Callable[..., dict], case: dict) -> dict:
    """Free what the case before held and run this one; an error takes the place of its figures, and the next one can run."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return function(**case)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def run_yardstick(script: str) -> dict[str, float]:
    printed = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True).stdout
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    for result in results:
        print(json.dumps(result), flush=True)
    return {result["name"].split()[1]: result["real_tok_s"] for result in results}


def run_reference(overrides: list[str]) -> dict:
    """Time the whole command of the reference epoch and read what it prints."""
    output = tempfile.mkdtemp()
    command = [sys.executable, "-m", "chatsft.train", "recipes/reference.yaml", f"output_dir={output}", *overrides]
    start = time.perf_counter()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds = time.perf_counter() - start
    losses = [float(loss) for loss in re.findall(r"Validation loss: ([\d.]+)", printed)]
    with open(f"{output}/trainer_state.json", encoding="utf-8") as file:
        logs = [log for log in json.load(file)["log_history"] if "tokens_per_second" in log]
    seconds_each = [log["tokens"] / log["tokens_per_second"] for log in logs]
    training = sum(seconds_each[1:]) / (len(seconds_each) - 1) * len(seconds_each)  # compilation falls into the first
    return {
        "command_s": round(seconds, 1),
        "training_steps_s": round(training, 1),
        "validation_loss": losses[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--tried", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--yardstick")
    parser.add_argument("--reference", nargs="+", metavar="KEY=VALUE")
    options = parser.parse_args()
    yardstick = run_yardstick(options.yardstick) if options.yardstick else {}
    for name, case in ({name: CASES[name] for name in options.cases} | (TRIED if options.tried else {})).items():
        result = {"name": name} | attempt(measure, case)
        if "real_tok_s" in result and name.split()[0] in yardstick:
            result["of_yardstick"] = round(result["real_tok_s"] / yardstick[name.split()[0]], 3)
        print(json.dumps(result), flush=True)
    for case in MEMORY if options.memory else ():
        print(json.dumps(case | attempt(measure_memory, case)), flush=True)
    for _ in range(2 if options.reference else 0):
        print(json.dumps({"name": "reference epoch"} | attempt(run_reference, {"overrides": options.reference})), flush=True)


if __name__ == "__main__":
    main()
