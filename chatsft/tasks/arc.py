"""ARC: grade-school science questions (Clark et al., 2018), in an easy and a challenge set."""

from pathlib import Path

from chatsft.tasks.multiple_choice import is_right_letter, make_choice_conversation
from chatsft.tasks.table import check_choice, load_table
from chatsft.tasks.task import Task


class ARC(Task):
    """Questions with three to five choices, lettered A to E or 1 to 4."""

    eval_type = "categorical"

    def __init__(self, subset: str, split: str, data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        check_choice("ARC subset", subset, ("ARC-Easy", "ARC-Challenge"))
        check_choice("ARC split", split, ("train", "validation", "test"))
        hub = {"path": "allenai/ai2_arc", "name": subset, "split": split}
        self.table = load_table(hub, f"arc/{subset}/{split}.jsonl", ("question", "choices", "answerKey"), data_root)

    def num_examples(self) -> int:
        return len(self.table.rows)

    def get_example(self, index: int) -> dict:
        row = self.table.rows[index]
        letters, answer = row["choices"]["label"], row["answerKey"]
        if answer not in letters:
            raise ValueError(f"ARC question {row['question']!r} has answer {answer!r}, which is none of its letters {letters}")
        return make_choice_conversation(row["question"], letters, row["choices"]["text"], answer)

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return is_right_letter(conversation, completion)

    def fingerprint(self) -> str:
        return self.table.fingerprint
