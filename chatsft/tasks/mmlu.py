"""MMLU: exam questions over 57 subjects (Hendrycks et al., 2021)."""

from pathlib import Path

from chatsft.tasks.multiple_choice import is_right_letter, make_choice_conversation
from chatsft.tasks.table import check_choice, load_table
from chatsft.tasks.task import Task

LETTERS = ["A", "B", "C", "D"]
FILES = {"test": "test", "validation": "val", "val": "val", "dev": "dev", "train": "auxiliary_train"}
HUB_SPLITS = {"val": "validation"}


class MMLU(Task):
    """Questions with four choices; the conversation carries its `subject`.

    The training questions are the Hub's subset "auxiliary_train" with split "train"; `split="auxiliary_train"` is short for both.
    """

    eval_type = "categorical"

    def __init__(self, subset: str = "all", split: str | None = None, data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        if split == "auxiliary_train":
            subset, split = "auxiliary_train", "train"
        check_choice("MMLU subset", subset, ("all", "auxiliary_train"))
        check_choice("MMLU split", split, ("train",) if subset == "auxiliary_train" else tuple(FILES))
        hub = {"path": "cais/mmlu", "name": subset, "split": HUB_SPLITS.get(split, split)}
        # the Hub's auxiliary_train wraps every row in a column "train"
        self.wrapped = subset == "auxiliary_train" and data_root is None
        columns = ("train",) if self.wrapped else ("question", "choices", "answer", "subject")
        self.table = load_table(hub, f"mmlu/{FILES[split]}.jsonl", columns, data_root)

    def num_examples(self) -> int:
        return len(self.table.rows)

    def get_example(self, index: int) -> dict:
        row = self.table.rows[index]["train"] if self.wrapped else self.table.rows[index]
        if len(row["choices"]) != len(LETTERS):
            raise ValueError(f"MMLU question {row['question']!r} has {len(row['choices'])} choices, expected {len(LETTERS)}")
        conversation = make_choice_conversation(row["question"], LETTERS, row["choices"], LETTERS[row["answer"]])
        return conversation | {"subject": row["subject"]}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return is_right_letter(conversation, completion)

    def fingerprint(self) -> str:
        return self.table.fingerprint
