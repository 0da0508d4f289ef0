"""What each source of a mixture gives to training, counted."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from chatsft.data.rendering import first_tokens
from chatsft.inspection.tokens import special_ids

BANDS = {"long questions": (0.15, 0.40), "conversational": (0.40, 0.70), "long answers": (0.70, 0.90)}
"""Usual shares of supervised tokens; docs/preview.md has the shares of nanochat's own sources."""

CHOICE_TOKENS = 8
"""Trained tokens of an answer up to which it is a choice or a word, whatever the question's length."""


@dataclass
class Counts:
    """What a source holds.

    Args:
        turns: user messages.
        tokens: what is left after the cut to max_length.
        trained: those of them with a loss.
        answers: runs of trained tokens, before the cut.
        open_answers: answers whose last token is not a special one, so that nothing teaches the model to stop.
        multi_turn: conversations with more than one user message.
        truncated: conversations longer than max_length.
        unreached: truncated ones of which no trained token is left.
        empty: conversations with an assistant message that says nothing.
        duplicate: conversations that an earlier one equals word for word; repeats of the recipe do not count.
        longest: tokens of the longest conversation, before the cut.
    """

    conversations: int = 0
    turns: int = 0
    tokens: int = 0
    trained: int = 0
    answers: int = 0
    open_answers: int = 0
    multi_turn: int = 0
    truncated: int = 0
    unreached: int = 0
    empty: int = 0
    duplicate: int = 0
    longest: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Add up; the longest of two is the longer one.

        >>> (Counts(turns=1, longest=9) + Counts(turns=2, longest=5)).longest
        9
        """
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return Counts(**sums | {"longest": max(self.longest, other.longest)})

    @property
    def share(self) -> float:
        """Supervised tokens over tokens."""
        return self.trained / self.tokens if self.tokens else 0.0

    @property
    def band(self) -> str:
        """Name the kind of data that usually has such a share; "" where none has.

        >>> Counts(tokens=100, trained=60, answers=1).band, Counts(tokens=100, trained=2, answers=1).band
        ('conversational', 'choices')
        """
        if self.share < BANDS["long questions"][0]:
            return "choices" if 0 < self.trained <= CHOICE_TOKENS * self.answers else ""
        return next((name for name, (low, high) in BANDS.items() if low <= self.share < high), "")


class ConversationCounter:
    """Count conversations one by one, and remember them, to find those that come twice."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.special = np.array(sorted(special_ids(tokenizer)))
        self.output_start = tokenizer.get_vocab().get("<|output_start|>", -1)
        self.first_origins: dict[bytes, str] = {}
        self.duplicates: set[str] = set()

    def count(self, messages: list[dict] | str, origin: str, ids: np.ndarray, mask: np.ndarray) -> Counts:
        """Count a conversation, rendered without a cut."""
        num_turns = 0 if isinstance(messages, str) else sum(message["role"] == "user" for message in messages)
        left = mask[first_tokens(ids, self.tokenizer, self.max_length)]
        ends = self.answer_ends(ids, mask)
        return Counts(
            conversations=1,
            turns=num_turns,
            tokens=len(left),
            trained=int(left.sum()),
            answers=len(ends),
            open_answers=0 if isinstance(messages, str) else sum(self.is_open(ids, end) for end in ends),
            multi_turn=int(num_turns > 1),
            truncated=int(len(mask) > self.max_length),
            unreached=int(len(mask) > self.max_length and not left.any()),
            empty=int(says_nothing(messages)),
            duplicate=int(self.is_duplicate(messages, origin)),
            longest=len(mask),
        )

    def answer_ends(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return where runs of trained tokens end; what a tool prints in the middle of an answer does not end it."""
        ends = np.flatnonzero((mask == 1) & (np.append(mask[1:], 0) == 0))
        following = np.append(ids, -2)[ends + 1]
        return ends[following != self.output_start]

    def is_open(self, ids: np.ndarray, end: int) -> bool:
        """Tell whether an answer ends without a special token, white space aside."""
        while end > 0 and ids[end] not in self.special and not self.tokenizer.decode([int(ids[end])]).strip():
            end -= 1
        return ids[end] not in self.special

    def is_duplicate(self, messages: list[dict] | str, origin: str) -> bool:
        """Tell whether another conversation before this one says the same; each is counted once, however often the recipe repeats it."""
        first = self.first_origins.setdefault(digest(messages), origin)
        if first == origin or origin in self.duplicates:
            return False
        self.duplicates.add(origin)
        return True


def count_by_source(
    mixture: datasets.Dataset, rendered: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Counts]:
    """Count what training sees of every source, the largest first.

    Args:
        rendered: the mixture, without a cut.
    """
    counter, counts = ConversationCounter(tokenizer, max_length), defaultdict(Counts)
    for row, tokens in zip(mixture, rendered.with_format("numpy"), strict=True):
        counts[row["source"]] += counter.count(row["messages"], row["origin"], tokens["input_ids"], tokens["assistant_masks"])
    return dict(sorted(counts.items(), key=lambda item: -item[1].tokens))


def count_shared(mixture: datasets.Dataset, other: datasets.Dataset) -> int:
    """Count the conversations of `other` that are in the mixture word for word."""
    seen = {digest(messages) for messages in mixture["messages"]}
    return sum(digest(messages) in seen for messages in other["messages"])


def digest(messages: list[dict] | str) -> bytes:
    return hashlib.blake2b(json.dumps(messages, sort_keys=True).encode(), digest_size=16).digest()


def says_nothing(messages: list[dict] | str) -> bool:
    """Tell whether an assistant message holds no text.

    >>> says_nothing([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}])
    True
    """
    if isinstance(messages, str):
        return not messages.strip()
    return any(message["role"] == "assistant" and not text_of(message["content"]).strip() for message in messages)


def text_of(content: str | Sequence[dict]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
