"""SmolTalk: general conversations for small models (460,000 to train on, 24,000 to test)."""

from pathlib import Path

from chatsft.tasks.table import check_choice, load_table
from chatsft.tasks.task import Task


class SmolTalk(Task):
    """Conversations, some with a system message; to train on, there is no right answer."""

    def __init__(self, split: str, data_root: str | Path | None = None, **kwargs):
        super().__init__(**kwargs)
        check_choice("SmolTalk split", split, ("train", "test"))
        hub = {"path": "HuggingFaceTB/smol-smoltalk", "split": split}
        self.table = load_table(hub, f"smoltalk/{split}.jsonl", ("messages",), data_root)

    def num_examples(self) -> int:
        return len(self.table.rows)

    def get_example(self, index: int) -> dict:
        return {"messages": self.table.rows[index]["messages"]}

    def fingerprint(self) -> str:
        return self.table.fingerprint
