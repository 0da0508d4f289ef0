"""Where a mixture entry's conversations come from: a task, a file, or a dataset."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import datasets

from chatsft.data.formats import to_messages
from chatsft.model.tokenization_gpt import ConversationError
from chatsft.tasks.json_lines import file_fingerprint, read_json_lines, replace_lone_surrogates
from chatsft.tasks.registry import create_task
from chatsft.tasks.task import Task
from chatsft.tasks.trainable import check_trainable

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TABLE_FORMATS = {".parquet": "parquet", ".csv": "csv"}
JSON_FORMATS = (".jsonl", ".json")


class TaskConversations:
    """The conversations of a task."""

    def __init__(self, task: Task, source: str):
        self.task, self.source = task, source

    def __len__(self) -> int:
        return len(self.task)

    def read(self, index: int) -> tuple[str, list[dict]]:
        """Return where conversation `index` stands and its checked messages."""
        origin = f"{self.source}[{index}]"
        return origin, check_trainable(self.task[index], origin)

    @cached_property
    def fingerprint(self) -> str:
        return self.task.fingerprint() or self.digest()

    def digest(self) -> str:
        """Hash every conversation: the only sure sign that a task with data of its own is unchanged."""
        digest = hashlib.sha256()
        for index in range(len(self.task)):
            digest.update(json.dumps(self.task[index]["messages"]).encode())
        return digest.hexdigest()


class FileConversations:
    """Conversations or texts of a .jsonl or .json file. All lines are checked, whichever are used, so that an error shows at once."""

    def __init__(self, path: Path, columns: dict | None):
        self.path, self.columns, self.source = path, columns, path.name

    def __len__(self) -> int:
        return len(self.conversations)

    def read(self, index: int) -> tuple[str, list[dict] | str]:
        return self.conversations[index]

    @cached_property
    def conversations(self) -> list[tuple[str, list[dict] | str]]:
        return [(origin, read_messages(value, self.columns, origin)) for origin, value in read_values(self.path)]

    @cached_property
    def fingerprint(self) -> str:
        return file_fingerprint(self.path)


class TableConversations:
    """The conversations of a dataset, one per row."""

    def __init__(self, rows: datasets.Dataset, columns: dict | None, source: str):
        self.rows, self.columns, self.source = rows, columns, source

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[str, list[dict] | str]:
        origin = f"{self.source}[{index}]"
        return origin, read_messages(self.rows[index], self.columns, origin)

    @property
    def fingerprint(self) -> str:
        return self.rows._fingerprint


def read_values(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (where, value) for each line, or for each element of a .json file that is one array."""
    if path.suffix == ".json" and path.read_bytes().removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        values = read_array(path)
        if values is not None:
            yield from ((f"{path}[{index}]", value) for index, value in enumerate(values))
            return
    yield from ((f"{path}:{number}", value) for number, value in read_json_lines(path))


def read_array(path: Path) -> list | None:
    """Return the conversations of a .json file that is one array, or None if it holds several arrays, one per line."""
    try:
        values = replace_lone_surrogates(json.loads(path.read_text(encoding="utf-8-sig")))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    is_one_conversation = bool(values) and isinstance(values[0], dict) and "role" in values[0]
    return [values] if is_one_conversation else values


def read_messages(value: object, columns: dict | None, origin: str) -> list[dict] | str:
    """Find the messages, or the raw text, in a line or row and check them."""
    try:
        messages = to_messages(value, columns)
    except ConversationError as error:
        raise ConversationError(f"{origin}: {error}") from None
    return messages if isinstance(messages, str) else check_trainable({"messages": messages}, origin)


def open_task(entry: dict, data_root: str | Path | None) -> TaskConversations:
    """Make the task of an entry; its start and stop are applied by the mixture, after its shuffle."""
    options = {key: value for key, value in entry.items() if key not in ("task", "start", "stop", "shuffle", "repeat")}
    task = create_task(entry["task"], **({"data_root": data_root} | options))
    return TaskConversations(task, entry["task"].rpartition(":")[2])


def open_path(entry: dict, places: list[Path]) -> FileConversations | TableConversations:
    """Open a file or folder found in `places`, or else a dataset on the Hub."""
    columns, split = entry.get("columns"), entry.get("split", "train")
    path = find_path(entry["path"], places)
    if path is None:
        return TableConversations(load_from_hub(entry["path"], entry.get("name"), split, places), columns, entry["path"])
    if path.is_dir():
        return TableConversations(load_folder(path, split), columns, path.name)
    if path.suffix in JSON_FORMATS:
        return FileConversations(path, columns)
    if path.suffix in TABLE_FORMATS:
        rows = datasets.load_dataset(TABLE_FORMATS[path.suffix], data_files=str(path), split="train")
        return TableConversations(rows, columns, path.name)
    raise ValueError(f"{path}: unknown file type {path.suffix!r}; mixtures read {', '.join([*JSON_FORMATS, *TABLE_FORMATS])} and folders")


def find_path(path: str, places: list[Path]) -> Path | None:
    """Return the first of `places` / `path` that exists (an absolute path stands for itself)."""
    return next((place / path for place in places if (place / path).exists()), None)


def load_folder(path: Path, split: str) -> datasets.Dataset:
    """Load a folder written by `save_to_disk`, or one of data files."""
    if not ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        return datasets.load_dataset(str(path), split=split)
    loaded = datasets.load_from_disk(str(path))
    return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded


def load_from_hub(path: str, name: str | None, split: str, places: list[Path]) -> datasets.Dataset:
    """Load a dataset of the Hub; what is no "organisation/dataset" was meant as a file."""
    looked_in = ", ".join(str(place / path) for place in places) or "no folder"
    if not HUB_ID.fullmatch(path) or Path(path).suffix in (*JSON_FORMATS, *TABLE_FORMATS):
        raise FileNotFoundError(f"{path} is not there; looked for {looked_in}")
    try:
        return datasets.load_dataset(path, name, split=split)
    except OSError as error:
        raise FileNotFoundError(f"{path} is neither a file (looked for {looked_in}) nor to be had from the Hub: {error}") from error
