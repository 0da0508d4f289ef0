"""Training throughput through ChatTrainer, on random weights and synthetic conversations.

python -m tests.benchmarks.training --depths 12 20 [--yardstick yardstick.py]

Conversation lengths are log-normal (median 350 tokens, sigma 0.9, 32 to 2048), the second half of each is supervised. A model of
depth d is 64 d wide with heads of 128. Needs a GPU with bfloat16. --yardstick names a script that prints JSON lines with
"name" and "real_tok_s" for the same workload; it runs first, and ratios are printed beside.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import TrainerCallback

from chatsft.arguments import ChatArguments
from chatsft.data.collator import FlatteningCollator
from chatsft.data.packing import ConversationRows, pack_rows
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.head_loss import CHUNK
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_checkpoint import layer_windows
from chatsft.trainer import ChatTrainer

LENGTH = 2048
PEAK = 790e12  # bfloat16 matrix rate measured on one H200; mfu = 6 x matmul parameters x real tokens / time / PEAK


def conversations(count: int, vocab_size: int) -> Dataset:
    numbers, generator = random.Random(1), torch.Generator().manual_seed(1)
    rows = {"input_ids": [], "assistant_masks": []}
    for _ in range(count):
        length = max(32, min(LENGTH, int(numbers.lognormvariate(math.log(350), 0.9))))
        rows["input_ids"].append(torch.randint(0, vocab_size, (length,), generator=generator).tolist())
        rows["assistant_masks"].append([int(i >= length // 2) for i in range(length)])
    return Dataset.from_dict(rows)


def build_model(depth: int, vocab_size: int, generation: str) -> GPTForCausalLM:
    later = {}
    if generation == "2026":
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
    return GPTForCausalLM._from_config(config, attn_implementation="varlen")


class StepTimer(TrainerCallback):
    """Note the time and the tokens at the end of each update."""

    def __init__(self):
        self.marks, self.trainer = [], None

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), self.trainer.throughput.tokens))


def measure(depth: int, vocab_size: int, generation: str, rows: int, steps: int, warmup: int = 4) -> dict:
    """Time full optimizer steps of ChatTrainer with `rows` rows of 2048 tokens a step."""
    torch._dynamo.reset()
    torch.cuda.reset_peak_memory_stats()
    data = conversations(rows * (steps + warmup) * 6, vocab_size)
    packed = pack_rows([len(ids) for ids in data["input_ids"]], LENGTH)[: rows * (steps + warmup)]
    args = ChatArguments(
        output_dir=tempfile.mkdtemp(),
        optimizer=f"muon_{generation}",
        per_device_train_batch_size=rows,
        max_steps=steps + warmup,
        bf16=True,
        torch_compile=True,
        logging_steps=10_000,
        dataloader_num_workers=2,
        disable_tqdm=True,
    )
    timer = StepTimer()
    trainer = ChatTrainer(
        model=build_model(depth, vocab_size, generation),
        args=args,
        train_dataset=ConversationRows(data, packed),
        data_collator=FlatteningCollator(LENGTH, 0, max(map(len, packed)), CHUNK),
        callbacks=[timer],
    )
    timer.trainer = trainer
    matmul = trainer.throughput.matmul_parameters
    trainer.train()
    (start, before), (end, after) = timer.marks[warmup - 1], timer.marks[-1]
    seconds, tokens = (end - start) / steps, (after - before) / steps
    return {
        "name": f"chatsft d{depth} {generation} vocab={vocab_size} rows={rows}",
        "ms": round(seconds * 1e3, 1),
        "real_tok_s": int(tokens / seconds),
        "mem_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "mfu_pct": round(100 * 6 * matmul * tokens / seconds / PEAK, 1),
    }


def run_yardstick(script: str) -> dict[str, float]:
    printed = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True).stdout
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    for result in results:
        print(json.dumps(result), flush=True)
    return {result["name"].split()[1]: result["real_tok_s"] for result in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--yardstick")
    options = parser.parse_args()
    yardstick = run_yardstick(options.yardstick) if options.yardstick else {}
    cases = [(depth, 65536, "2025") for depth in options.depths] + [(12, 32768, "2026")]
    for depth, vocab_size, generation in cases:
        result = measure(depth, vocab_size, generation, options.rows, options.steps)
        if f"d{depth}" in yardstick:
            result["of_yardstick"] = round(result["real_tok_s"] / yardstick[f"d{depth}"], 3)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
