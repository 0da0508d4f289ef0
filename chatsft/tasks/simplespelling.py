"""SimpleSpelling: spell a word, letter by letter."""

import random
from functools import cached_property
from pathlib import Path

from chatsft.tasks.json_lines import file_fingerprint
from chatsft.tasks.table import check_choice
from chatsft.tasks.task import Task
from chatsft.tasks.words import TEST_SEED_OFFSET, draw_word, find_word_list, read_words, train_words

WORD_ORDER_SEED = 42
NUM_TRAIN = 200_000


class SimpleSpelling(Task):
    """Words drawn by seed, so that a token's letters are seen often.

    Training rows are nanochat's. Its test row i was its training row i + 1 (random.Random ignores a seed's sign), so test rows here have
    seeds of their own and skip the words of the first 200,000 training rows as long as the list has others.
    """

    eval_type = "generative"

    def __init__(self, size: int = 1000, split: str = "train", data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        check_choice("SimpleSpelling split", split, ("train", "test"))
        self.size, self.split = size, split
        self.path = find_word_list(data_root)

    @cached_property
    def words(self) -> list[str]:
        """The list in an order of its own, so that a seed draws another word than in SpellingBee."""
        words = read_words(self.path)
        random.Random(WORD_ORDER_SEED).shuffle(words)
        return words

    @cached_property
    def excluded(self) -> frozenset[str]:
        return train_words(self.words, NUM_TRAIN) if self.split == "test" else frozenset()

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> dict:
        seed = index if self.split == "train" else TEST_SEED_OFFSET + index
        word = draw_word(random.Random(seed), self.words, self.excluded)
        messages = [
            {"role": "user", "content": f"Spell the word: {word}"},
            {"role": "assistant", "content": f"{word}: {','.join(word)}"},
        ]
        return {"messages": messages}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        """Compare with the whole answer, which is the word and its letters. (nanochat only trains on this task.)"""
        return completion.strip() == conversation["messages"][-1]["content"]

    def fingerprint(self) -> str:
        return file_fingerprint(self.path)
