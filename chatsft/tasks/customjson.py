"""CustomJSON: your own conversations, one JSON array of messages per line."""

from pathlib import Path

from chatsft.model.tokenization_gpt import ConversationError
from chatsft.tasks.json_lines import file_fingerprint, read_json_lines
from chatsft.tasks.task import Task
from chatsft.tasks.trainable import check_trainable


class CustomJSON(Task):
    """A file of `[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]` lines; all are checked at the start."""

    def __init__(self, filepath: str | Path, **kwargs):
        super().__init__(**kwargs)
        self.path = Path(filepath)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not there. CustomJSON reads a file with one JSON array of messages per line.")
        self.conversations = [self.read_line(number, value) for number, value in read_json_lines(self.path)]

    def read_line(self, number: int, value: object) -> dict:
        place = f"{self.path}:{number}"
        if not isinstance(value, list):
            problem = f"a {type(value).__name__}, expected a list of messages. Mixtures read other layouts by path."
            raise ConversationError(problem, place)
        return {"messages": check_trainable({"messages": value}, place)}

    def num_examples(self) -> int:
        return len(self.conversations)

    def get_example(self, index: int) -> dict:
        return self.conversations[index]

    def fingerprint(self) -> str:
        return file_fingerprint(self.path)
