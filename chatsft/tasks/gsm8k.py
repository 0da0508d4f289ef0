"""GSM8K: grade-school math problems (Cobbe et al., 2021), worked out with a calculator."""

import re
from pathlib import Path

from chatsft.tasks.answers import is_right_answer
from chatsft.tasks.table import check_choice, load_table
from chatsft.tasks.task import Task

CALCULATION = re.compile(r"(<<[^>]+>>)")


def split_calculations(answer: str) -> list[dict]:
    """Turn `<<expression=result>>` marks into python and python_output parts; the text between them stays as it is, even empty.

    >>> [(part["type"], part["text"]) for part in split_calculations("48/2 = <<48/2=24>>24 clips")]
    [('text', '48/2 = '), ('python', '48/2'), ('python_output', '24'), ('text', '24 clips')]
    """
    parts = []
    for piece in CALCULATION.split(answer):
        if CALCULATION.fullmatch(piece):
            expression, result = split_at_last_equals(piece[2:-2])
            parts += [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]
        else:
            parts.append({"type": "text", "text": piece})
    return parts


def split_at_last_equals(calculation: str) -> tuple[str, str]:
    """Split "a=b=c" into "a=b" and "c"; without an equals sign the result is empty."""
    expression, equals, result = calculation.rpartition("=")
    return (expression, result) if equals else (calculation, "")


class GSM8K(Task):
    """Word problems whose answer ends in `#### number`; the split has to be named, so that nobody trains on the test by default."""

    eval_type = "generative"

    def __init__(self, subset: str = "main", split: str | None = None, data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        check_choice("GSM8K subset", subset, ("main", "socratic"))
        check_choice("GSM8K split", split, ("train", "test"))
        folder = "gsm8k" if subset == "main" else f"gsm8k/{subset}"
        hub = {"path": "openai/gsm8k", "name": subset, "split": split}
        self.table = load_table(hub, f"{folder}/{split}.jsonl", ("question", "answer"), data_root)

    def num_examples(self) -> int:
        return len(self.table.rows)

    def get_example(self, index: int) -> dict:
        row = self.table.rows[index]
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": split_calculations(row["answer"])},
        ]
        return {"messages": messages}

    def evaluate(self, conversation: dict, completion: str) -> int:
        return is_right_answer(conversation, completion)

    def fingerprint(self) -> str:
        return self.table.fingerprint
