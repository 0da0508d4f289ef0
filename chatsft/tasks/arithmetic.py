"""Arithmetic: small sums with the calculator; needs no data."""

import random
import zlib

from chatsft.tasks.answers import is_right_answer
from chatsft.tasks.table import check_choice
from chatsft.tasks.task import Task

QUESTIONS = ("What is {}?", "Calculate {}.", "How much is {}?", "{} = ?", "Compute {}")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
MAX_DIGITS = 3
TEST_SHARE = 10


def draw_operand(rng: random.Random) -> int:
    """Draw a number of one to three digits, each length equally likely."""
    return rng.randrange(10 ** rng.randint(1, MAX_DIGITS))


def is_test_pair(a: int, b: int) -> bool:
    """Give one pair of operands in ten to the test split, whatever their order or operation."""
    return zlib.crc32(f"{min(a, b)} {max(a, b)}".encode()) % TEST_SHARE == 0


class Arithmetic(Task):
    """Additions, differences (never negative) and products of two numbers up to 999.

    The python part repeats the expression as asked and the final number repeats the output, so a model of a few million parameters has only
    to copy. No pair of operands is in both splits.
    """

    eval_type = "generative"

    def __init__(self, size: int = 1000, split: str = "train", **kwargs):
        super().__init__(**kwargs)
        check_choice("Arithmetic split", split, ("train", "test"))
        self.size, self.split = size, split

    def num_examples(self) -> int:
        return self.size

    def draw_pair(self, rng: random.Random) -> tuple[int, int]:
        """Draw operands until they belong to this split."""
        while True:
            a, b = draw_operand(rng), draw_operand(rng)
            if is_test_pair(a, b) == (self.split == "test"):
                return a, b

    def get_example(self, index: int) -> dict:
        rng = random.Random(index)
        a, b = self.draw_pair(rng)
        sign = rng.choice(list(OPERATIONS))
        if sign == "-":
            a, b = max(a, b), min(a, b)
        expression, result = f"{a} {sign} {b}", OPERATIONS[sign](a, b)
        parts = [
            {"type": "text", "text": "Let me calculate: "},
            {"type": "python", "text": expression},
            {"type": "python_output", "text": str(result)},
            {"type": "text", "text": f"\n#### {result}"},
        ]
        messages = [{"role": "user", "content": rng.choice(QUESTIONS).format(expression)}, {"role": "assistant", "content": parts}]
        return {"messages": messages}

    def evaluate(self, conversation: dict, completion: str) -> int:
        return is_right_answer(conversation, completion)

    def fingerprint(self) -> str:
        return "generated"
