"""CustomJSON: your own conversations, one JSON array of messages per line."""

from pathlib import Path

from chatsft.model.tokenization_gpt import ConversationError
from chatsft.tasks.bad_rows import handle_bad_rows
from chatsft.tasks.json_lines import file_fingerprint, parse_line, read_lines
from chatsft.tasks.task import Task
from chatsft.tasks.trainable import check_trainable


class CustomJSON(Task):
    """A file of `[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]` lines; all are checked at the start."""

    def __init__(self, filepath: str | Path, **kwargs):
        super().__init__(**kwargs)
        self.path = Path(filepath)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not there. CustomJSON reads a file with one JSON array of messages per line.")
        self.conversations, problems = [], []
        for number, line in read_lines(self.path):
            try:
                self.conversations.append(self.read_line(line, f"{self.path}:{number}"))
            except ValueError as error:
                problems.append(str(error))
        handle_bad_rows(self.path.name, problems, len(problems) + len(self.conversations))

    def read_line(self, line: bytes, place: str) -> dict:
        value = parse_line(line, place)
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
