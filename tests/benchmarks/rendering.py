"""Time rendering against tiktoken, and rendering with packing against TRL's SFTTrainer, on one core.

    python -m tests.benchmarks.rendering --conversations chatmix_train.jsonl --tokenizer tokenizer_folder [--limit 6000]

"cold" starts with an empty word cache, as each process does; "warm" has seen the conversations before, which a long run comes close
to. The numbers are CPU seconds, the best of the repeats. Preparation is timed once each, from a dataset of messages to packed rows with
masks, caches off: SFTTrainer's own (assistant_only_loss, packing, one process) on the same vocabulary and our template with generation
markers, and ours.
"""

import argparse
import copy
import json
import os
import pickle
import tempfile
import time
from itertools import islice
from pathlib import Path

import datasets
from transformers import NanoChatConfig, NanoChatForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from chatsft.data.packing import conversation_lengths, pack_rows
from chatsft.data.rendering import render_dataset
from chatsft.model.conversation import SPECIAL_TOKENS, conversation_spans
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer


class TiktokenRenderer:
    """The least work that renders with tiktoken: one encode call a text, two lists extended."""

    def __init__(self, folder: str):
        with open(Path(folder) / "tokenizer.pkl", "rb") as file:
            self.encoding = pickle.load(file)
        self.markers = {"": []} | {token: [self.encoding.encode_single_token(token)] for token in SPECIAL_TOKENS}

    def render_conversations(self, conversations: list[dict], max_tokens: int = 2048) -> dict[str, list[list[int]]]:
        rendered = [self.render_conversation(conversation, max_tokens) for conversation in conversations]
        return {"input_ids": [ids for ids, _ in rendered], "assistant_masks": [mask for _, mask in rendered]}

    def render_conversation(self, conversation: dict, max_tokens: int) -> tuple[list[int], list[int]]:
        ids, mask = [], []
        for opening, text, closing, trained in conversation_spans(conversation["messages"]):
            span = self.markers[opening] + self.encoding.encode_ordinary(text) + self.markers[closing]
            ids.extend(span)
            mask.extend([trained] * len(span))
        return ids[:max_tokens], mask[:max_tokens]


class NanochatSteps(TiktokenRenderer):
    """The same with nanochat's steps: a deep copy where a system message is merged, and each marker and text added by itself."""

    def render_conversation(self, conversation: dict, max_tokens: int) -> tuple[list[int], list[int]]:
        ids, mask = [], []

        def add(tokens: int | list[int], trained: int):
            tokens = [tokens] if isinstance(tokens, int) else tokens
            ids.extend(tokens)
            mask.extend([trained] * len(tokens))

        if conversation["messages"][0]["role"] == "system":
            conversation = copy.deepcopy(conversation)
        for opening, text, closing, trained in conversation_spans(conversation["messages"]):
            for marker in (opening, closing):
                if marker:
                    add(self.encoding.encode_single_token(marker), trained)
            if text:
                add(self.encoding.encode_ordinary(text), trained)
        return ids[:max_tokens], mask[:max_tokens]


def measure(renderer, conversations: list[dict], batch_size: int = 1000) -> tuple[float, int]:
    """Return the CPU seconds and the tokens of one pass in batches."""
    start, tokens = time.process_time(), 0
    for first in range(0, len(conversations), batch_size):
        tokens += sum(map(len, renderer.render_conversations(conversations[first : first + batch_size])["input_ids"]))
    return time.process_time() - start, tokens


def measure_all(folder: str, conversations: list[dict]) -> dict[str, tuple[float, int]]:
    """Measure each way once, with fresh tokenizers."""
    tokenizer = load_nanochat_tokenizer(folder)
    ways = {
        "tiktoken": TiktokenRenderer(folder),
        "tiktoken, nanochat's steps": NanochatSteps(folder),
        "chatsft, cold": tokenizer,
        "chatsft, warm": tokenizer,
    }
    return {name: measure(renderer, conversations) for name, renderer in ways.items()}


def prepare_with_trl(folder: str, messages: datasets.Dataset, max_length: int = 2048) -> int:
    """Let SFTTrainer's constructor prepare the dataset; returns its rows."""
    ours = load_nanochat_tokenizer(folder)
    special = {"bos_token": "<|bos|>", "eos_token": "<|assistant_end|>", "pad_token": "<|assistant_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=ours.backend_tokenizer, chat_template=ours.chat_template, **special)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = NanoChatForCausalLM(NanoChatConfig(vocab_size=len(tokenizer), **sizes))
    settings = {
        "assistant_only_loss": True,
        "packing": True,
        "max_length": max_length,
        "dataset_num_proc": 1,
        "eos_token": "<|assistant_end|>",
    }
    args = SFTConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], **settings)
    return len(SFTTrainer(model=model, args=args, train_dataset=messages, processing_class=tokenizer).train_dataset)


def prepare_with_chatsft(folder: str, messages: datasets.Dataset, max_length: int = 2048) -> int:
    """Render and pack as chatsft.train does; returns the rows."""
    rendered = render_dataset(messages, load_nanochat_tokenizer(folder), max_length)
    return len(pack_rows(conversation_lengths(rendered).tolist(), max_length))


def compare_preparation(folder: str, conversations: list[dict]) -> None:
    datasets.disable_caching()
    datasets.disable_progress_bars()
    messages = datasets.Dataset.from_list([{"messages": conversation["messages"]} for conversation in conversations])
    speeds = {}
    for name, prepare in {"SFTTrainer": prepare_with_trl, "chatsft": prepare_with_chatsft}.items():
        start = time.perf_counter()
        rows = prepare(folder, messages)
        speeds[name] = len(messages) / (time.perf_counter() - start)
        print(f"{name + ', prepared and packed':27} {speeds[name]:8.0f} conversations/s, {rows} rows")
    print(f"{speeds['chatsft'] / speeds['SFTTrainer']:.1f} x SFTTrainer")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", required=True, help="jsonl file with a messages column")
    parser.add_argument("--tokenizer", required=True, help="folder of tokenizer.pkl")
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with open(arguments.conversations, encoding="utf-8") as file:
        conversations = [json.loads(line) for line in islice(file, arguments.limit)]

    runs = [measure_all(arguments.tokenizer, conversations) for _ in range(arguments.repeats)]
    best = {name: min(run[name] for run in runs) for name in runs[0]}
    baseline, expected = best["tiktoken"]
    for name, (seconds, tokens) in best.items():
        assert tokens == expected, f"{name} rendered {tokens} tokens, tiktoken {expected}"
        speed = f"{len(conversations) / seconds:8.0f} conversations/s {tokens / seconds / 1e6:6.2f}M tokens/s"
        print(f"{name:27} {speed} {baseline / seconds:6.2f} x tiktoken")
    compare_preparation(arguments.tokenizer, conversations)


if __name__ == "__main__":
    main()
