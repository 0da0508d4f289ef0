"""Time rendering against tiktoken, on one core.

    python -m tests.benchmarks.rendering --conversations chatmix_train.jsonl --tokenizer tokenizer_folder [--limit 6000]

"cold" starts with an empty word cache, as each process does; "warm" has seen the conversations before, which a long run comes close
to. The numbers are CPU seconds, the best of the repeats.
"""

import argparse
import copy
import json
import os
import pickle
import time
from itertools import islice
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

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


if __name__ == "__main__":
    main()
