"""Decoding speed beside transformers' own NanoChat on random weights, and the time of evaluations through the decode loop.

    python -m tests.benchmarks.generation [--depth 20] [--batches 1 32]
    python -m tests.benchmarks.generation --checkpoint CHECKPOINT [--tokenizer_path FOLDER] --data_root DATA --tasks GSM8K SpellingBee

Greedy, bfloat16, through model.generate(): prompts of 512 tokens, 256 new ones each, no end token. A model of depth d is 64 d wide with
heads of 128 and a vocabulary of 65536. "limit" is what the memory allows if the weights are read once a step and the cache once a token,
at the rate of a copy measured first. Needs a CUDA GPU. The second form times whole evaluations of a checkpoint instead.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable

import torch
from transformers import NanoChatConfig, NanoChatForCausalLM, PreTrainedModel

from chatsft.evaluation import EvaluationOptions, evaluate_task
from chatsft.generation.custom_generate import decode
from chatsft.generation.decoder import release_workspaces
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.loading import load_chat_model
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_checkpoint import layer_windows
from chatsft.tasks import create_task

VOCABULARY, CONTEXT = 65536, 2048
SPELLING_PROBLEMS = 64


def build_ours(depth: int, year: str) -> GPTForCausalLM:
    later = {
        "rope_theta": 100000.0,
        "query_key_scale": 1.2,
        "layer_windows": layer_windows("SSSL", depth, CONTEXT),
        "value_embedding_layers": [i for i in range(depth) if i % 2 == (depth - 1) % 2],
        "residual_scaling": True,
        "smear": True,
        "backout": True,
    }
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64 * depth, "num_hidden_layers": depth, "num_attention_heads": depth // 2}
    with torch.device("cuda"):
        model = GPTForCausalLM(GPTConfig(**sizes, **(later if year == "2026" else {})))
    return with_random_weights(model)


def build_theirs(depth: int) -> NanoChatForCausalLM:
    sizes = {"hidden_size": 64 * depth, "intermediate_size": 256 * depth, "num_hidden_layers": depth}
    with torch.device("cuda"):
        config = NanoChatConfig(vocab_size=VOCABULARY, num_attention_heads=depth // 2, num_key_value_heads=depth // 2, **sizes)
        model = NanoChatForCausalLM(config)
    return with_random_weights(model)


def with_random_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Make every matrix alive, so that nothing is trivially zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.generation_config.eos_token_id = None
    return model.to(torch.bfloat16).eval()


def copy_rate() -> float:
    """Return bytes per second, read and written, of a large copy on this GPU."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_time(lambda: target.copy_(source), repeats=5)


def memory_limit(model: GPTForCausalLM, batch: int, prompt: int, new_tokens: int, rate: float) -> float:
    """Return the tokens per second that reading weights and cache allows."""
    config = model.config
    embeddings = sum(module.weight.nbytes for module in (model.model.embed_tokens, *model.model.value_embeddings.values()))
    weights = sum(parameter.nbytes for parameter in model.parameters()) - embeddings
    positions = prompt + new_tokens / 2
    keys = sum(min(positions, window) for window in config.layer_windows or [positions] * config.num_hidden_layers)
    cache = 2 * 2 * keys * config.num_key_value_heads * config.head_dim
    return rate * batch / (weights + batch * cache)


def best_time(run: Callable[[], object], repeats: int) -> float:
    """Run once to warm up, which compiles, and return the seconds of the fastest of some more."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(name: str, model: PreTrainedModel, batch: int, options: argparse.Namespace, **how) -> float:
    """Print and return the tokens per second of one way to generate."""
    ids = torch.randint(VOCABULARY, (batch, options.prompt), generator=torch.Generator().manual_seed(0)).cuda()
    new = {"max_new_tokens": options.new_tokens, "min_new_tokens": None, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    start = time.perf_counter()
    seconds = best_time(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **new, **how), options.repeats)
    total = time.perf_counter() - start
    rate = batch * options.new_tokens / seconds
    print(
        json.dumps({"name": name, "batch": batch, "tok_s": round(rate), "ms_a_step": round(1e3 * batch / rate, 3), "s": round(total, 1)}),
        flush=True,
    )
    return rate


def compare(options: argparse.Namespace) -> None:
    """Print our rate at every batch size, the two of transformers', and the ratios."""
    bandwidth = copy_rate()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_TB_s": round(bandwidth / 1e12, 2)}))
    ours, limits = {}, {}
    for year in options.years:
        model = build_ours(options.depth, year)
        for batch in options.batches:
            limits[year, batch] = memory_limit(model, batch, options.prompt, options.new_tokens, bandwidth)
            ours[year, batch] = measure(f"chatsft d{options.depth} {year}", model, batch, options, custom_generate=decode)
        del model
        release_workspaces()
        gc.collect()
    theirs = {}
    if not options.only_ours:
        model = build_theirs(options.depth)
        for batch in options.batches:
            theirs[batch] = [measure(f"transformers NanoChat d{options.depth}", model, batch, options)]
            theirs[batch].append(measure("the same, static cache", model, batch, options, cache_implementation="static"))
    for (year, batch), rate in ours.items():
        ratios = [round(rate / other, 1) for other in theirs.get(batch, [])]
        share = round(rate / limits[year, batch], 3)
        print(json.dumps({"year": year, "batch": batch, "limit": round(limits[year, batch]), "of_limit": share, "of_transformers": ratios}))


@torch.no_grad()
def time_evaluations(options: argparse.Namespace) -> None:
    """Print the seconds each task takes, compilation in the first included."""
    model, tokenizer = load_chat_model(options.checkpoint, options.tokenizer_path, device=torch.device("cuda"), dtype=torch.bfloat16)
    for name in options.tasks:
        size = {"size": SPELLING_PROBLEMS} if name == "SpellingBee" else {}
        task = create_task(name, data_root=options.data_root, split="test", **size)
        start = time.perf_counter()
        report = evaluate_task(name, task, model, tokenizer, EvaluationOptions(max_problems=options.max_problems))
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"task": name, "problems": report.num_problems, "seconds": seconds, "accuracy": report.accuracy}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--years", nargs="+", default=["2025", "2026"], choices=["2025", "2026"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only_ours", action="store_true", help="leave transformers' NanoChat out")
    parser.add_argument("--checkpoint", help="time evaluations of this model instead")
    parser.add_argument("--tokenizer_path")
    parser.add_argument("--data_root", help="folder with the tasks' data as files; without it they come from the Hub")
    parser.add_argument("--tasks", nargs="+", default=["SpellingBee", "GSM8K", "MMLU"])
    parser.add_argument("--max_problems", type=int)
    options = parser.parse_args()
    if options.checkpoint:
        time_evaluations(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
