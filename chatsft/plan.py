"""What a run will take, said before anything heavy starts: rows, updates, memory, time, cost."""

import math
import time
from typing import NamedTuple

import torch
from accelerate.utils.modeling import is_peft_model
from transformers import PreTrainedModel

from chatsft.arguments import ChatArguments, optimizer_key
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.head_loss import chunk_size
from chatsft.optim.groups import parameter_groups
from chatsft.throughput import count_matmul_parameters

EFFICIENCY = 0.5
"""Share of the rate of a plain matrix product that training reaches: 0.47 at depth 12 and 0.55 at depth 20, measured on an H200."""

HOST_SECONDS = {"layer": 0.025, "stack": 0.023, "step": 0.012}
"""What the host needs for an update of a small model on a GPU, by compile_scope; measured with eight layers."""


class Batching(NamedTuple):
    """How many rows of at most `row_length` tokens an epoch takes, what is in them, and how many tokens that is with the padding."""

    conversations: int
    tokens: int
    supervised_tokens: int
    padded_tokens: int
    rows: int
    row_length: int
    rows_per_micro_batch: int
    micro_batches_per_update: int


def describe_plan(model: PreTrainedModel, args: ChatArguments, batching: Batching) -> str:
    """Write the plan of a run as lines for people."""
    updates = count_updates(args, batching)
    memory = estimate_memory(model, args, batching.rows_per_micro_batch * batching.row_length)
    parts = ", ".join(f"{name} {gib:.2f}" for name, gib in memory.items())
    rows_per_update = f"{args.world_size} processes x {batching.micro_batches_per_update} x {batching.rows_per_micro_batch}"
    share, filled = batching.supervised_tokens / batching.tokens, batching.tokens / batching.padded_tokens
    lines = {
        "conversations": f"{batching.conversations:,}, {batching.tokens:,} tokens, {share:.1%} trained",
        "rows": f"{batching.rows:,} of up to {batching.row_length:,} tokens, {filled:.1%} filled",
        "updates": f"{updates:,} of {rows_per_update} rows",
        "memory": f"{sum(memory.values()):.2f} GiB a process: {parts}",
        "time": describe_time(predict_seconds(model, args, batching, updates), args),
    }
    return "\n".join(f"{name:<15}{text}" for name, text in lines.items())


def count_updates(args: ChatArguments, batching: Batching) -> int:
    """Count the optimizer steps: max_steps, or what the epochs hold."""
    if args.max_steps > 0:
        return args.max_steps
    rows_per_update = batching.rows_per_micro_batch * batching.micro_batches_per_update * args.world_size
    return math.ceil(args.num_train_epochs * math.ceil(batching.rows / rows_per_update))


def estimate_memory(model: PreTrainedModel, args: ChatArguments, tokens: int) -> dict[str, float]:
    """Estimate the peak memory of a process, in GiB by what takes it, for micro-batches of `tokens`.

    Weights, gradients and optimizer state are counted. Activations are the tensors that the backward pass of a layer needs, in widths
    per token; on an H200 the sum was within 10 % of the measured peak for compiled models of depth 12 and 20 (docs/benchmarks.md).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = getattr(args, optimizer_key(is_peft_model(model)))
    groups = parameter_groups(model, optimizer=optimizer, matrix_lr=0, embedding_lr=0, unembedding_lr=0, scalar_lr=0)
    states = {"muon": 1 / args.world_size, "adamw": 2}  # numbers a weight; the processes share Muon's
    number_size = 2 if args.bf16 or args.fp16 else 4
    config = model.config.get_text_config()
    sizes = {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "gradients": sum(parameter.nbytes for parameter in trained) * min(args.world_size, 2),  # DDP has a copy of them
        "optimizer": sum(states[group["kind"]] * parameter.nbytes for group in groups for parameter in group["params"]),
        "activations": tokens * activation_numbers(config, args) * number_size,
        "loss": loss_bytes(config, tokens, number_size),
    }
    return {name: size / 2**30 for name, size in sizes.items()}


def activation_numbers(config, args: ChatArguments) -> int:
    """Count the numbers that all layers keep for one token until the backward pass.

    A layer keeps its input, the normed input, queries and keys before and after rotation and norm, values, the attention's output, the
    stream after attention, its norm, and the MLP's inner activations twice. With activation_memory_budget below 1 norms and
    activation functions are computed again, with gradient checkpointing everything but the input.
    """
    width, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
    key_value = head_dim * config.num_key_value_heads
    is_ours = isinstance(config, GPTConfig)
    if is_ours and args.compile_layers:
        layer = 7 * width + 3 * key_value + 2 * inner if args.activation_memory_budget == 1 else 4 * width + 2 * key_value + inner
    else:
        layer = 8 * width + 4 * key_value + (2 if is_ours else 4) * inner
    value_embeddings = len(config.value_embedding_layers or []) * key_value if is_ours else 0
    if args.recomputes_layers:
        return config.num_hidden_layers * width + layer
    return config.num_hidden_layers * layer + value_embeddings


def loss_bytes(config, tokens: int, number_size: int) -> int:
    """Count what the head takes: logits and their gradient for a chunk, its weights, the gradient of the hidden states."""
    if not isinstance(config, GPTConfig):
        return tokens * config.vocab_size * (number_size + 8)  # logits as they come and in float32, and their gradient
    chunk = 2 * chunk_size(tokens) * config.vocab_size
    return (chunk + config.vocab_size * config.hidden_size + 2 * tokens * config.hidden_size) * number_size


def predict_seconds(model: PreTrainedModel, args: ChatArguments, batching: Batching, updates: int) -> float:
    """Predict the training time from the operations of an update and the rate of a matrix product on this machine."""
    rows = batching.rows_per_micro_batch * batching.micro_batches_per_update
    update_tokens = rows * batching.padded_tokens / batching.rows
    head = model.get_output_embeddings().weight.numel()
    share = batching.supervised_tokens / batching.tokens if isinstance(model.config, GPTConfig) else 1.0
    operations = 6 * update_tokens * (count_matmul_parameters(model) - head + share * head)
    seconds = operations / (EFFICIENCY * matmul_rate(args.device, torch.bfloat16 if args.bf16 else torch.float32))
    return updates * (max(seconds, HOST_SECONDS[args.compile_scope]) if args.device.type == "cuda" else seconds)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a matrix product; takes a fraction of a second."""
    size = 4096 if device.type == "cuda" else 768
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def describe_time(seconds: float, args: ChatArguments) -> str:
    """Write the predicted time, and on GPUs the GPU-hours and their price where one is given."""
    text = f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"
    if args.device.type != "cuda":
        return text
    hours = seconds * args.world_size / 3600
    price = "" if args.gpu_hour_price is None else f", {hours * args.gpu_hour_price:.2f} at {args.gpu_hour_price:g} an hour"
    return f"{text} on {torch.cuda.get_device_name()}, {hours:.3f} GPU-hours{price}"
