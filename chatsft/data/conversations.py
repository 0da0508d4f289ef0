"""Where a mixture entry's conversations come from: a task, a file, or a dataset."""

import codecs
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets.exceptions import DatasetGenerationError

from chatsft.data.formats import to_messages
from chatsft.model.conversation import has_image
from chatsft.tasks.json_lines import file_fingerprint, parse_line, read_lines, replace_lone_surrogates
from chatsft.tasks.registry import create_task
from chatsft.tasks.task import Task
from chatsft.tasks.trainable import check_trainable

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TABLE_FORMATS = {".parquet": "parquet", ".csv": "csv"}
JSON_FORMATS = (".jsonl", ".json")
BETWEEN = re.compile(r"[\s,]*")


class Row(NamedTuple):
    """A conversation or text and where it stands, or the problem that it has; with what it was read from."""

    origin: str
    messages: list[dict] | str
    layout: str = "task"
    num_calls: int = 0
    unused: tuple[str, ...] = ()
    problem: str | None = None


class TaskConversations:
    """The conversations of a task."""

    def __init__(self, task: Task, source: str):
        self.task, self.source = task, source

    def __len__(self) -> int:
        return len(self.task)

    def read(self, index: int) -> Row:
        origin, conversation = f"{self.source}[{index}]", self.task[index]
        try:
            return Row(origin, check_trainable(conversation))
        except ValueError as error:
            return Row(origin, [], problem=f"{origin}: {error}")

    def list_bad_rows(self) -> list[Row]:
        return []

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
        return len(self.rows)

    def read(self, index: int) -> Row:
        return self.rows[index]

    def list_bad_rows(self) -> list[Row]:
        return [row for row in self.rows if row.problem]

    @cached_property
    def rows(self) -> list[Row]:
        return [
            Row(origin, [], problem=problem) if problem else read_row(value, self.columns, origin, self.path.parent)
            for origin, value, problem in read_values(self.path)
        ]

    @cached_property
    def fingerprint(self) -> str:
        return file_fingerprint(self.path)


class TableConversations:
    """The conversations of a dataset, one per row."""

    def __init__(self, rows: datasets.Dataset, columns: dict | None, source: str, folder: Path = Path()):
        self.rows, self.columns, self.source, self.folder = rows, columns, source, folder

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Row:
        return read_row(self.rows[index], self.columns, f"{self.source}[{index}]", self.folder)

    def list_bad_rows(self) -> list[Row]:
        """Return none: only the rows that are used are looked at, because a dataset may be large."""
        return []

    @property
    def fingerprint(self) -> str:
        return self.rows._fingerprint


def read_values(path: Path) -> Iterator[tuple[str, object, str | None]]:
    """Yield (where, value, problem) for each line, or for each element of a file that is one array over several lines."""
    (number, first), (_, second) = [*itertools.islice(read_lines(path), 2), (1, b""), (1, b"")][:2]
    if first == b"{" and second.startswith(b'"'):
        where = f"{path}:{number}"
        yield where, None, f"{where}: one object over several lines. Write each conversation on one line, or all of them as one array."
        return
    values = read_array(path) if path.suffix == ".json" or first == b"[" else None
    if values is not None:
        yield from values
        return
    for number, line in read_lines(path):
        value = problem = None
        try:
            value = parse_line(line, f"{path}:{number}")
        except ValueError as error:
            problem = str(error)
        yield f"{path}:{number}", value, problem


def read_array(path: Path) -> list[tuple[str, object, str | None]] | None:
    """Return the conversations of a .json file that is one array with their lines, or None if it is no array, or several, one per line."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content.lstrip().startswith(b"["):
        return None
    try:
        text = content.decode("utf-8")
        values = json.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [(f"{path}:{line}", None, f"{path}:{line}: byte {error.start} is not UTF-8. Save the file as UTF-8.")]
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        where = f"{path}:{error.lineno}"
        return [(where, None, f"{where}: not JSON ({error.msg} at column {error.colno}). Correct this place; nothing behind it is read.")]
    if values and isinstance(values[0], dict) and "role" in values[0]:
        return [(f"{path}:1", replace_lone_surrogates(values), None)]
    lines = element_lines(text)
    return [
        (f"{path}:{line}[{index}]", replace_lone_surrogates(value), None)
        for index, (line, value) in enumerate(zip(lines, values, strict=True))
    ]


def element_lines(text: str) -> list[int]:
    """Return the line on which each element of a JSON array begins.

    >>> element_lines('[1,\\n [2,\\n 3],\\n4]')
    [1, 2, 4]
    """
    decoder, lines, line, seen = json.JSONDecoder(), [], 1, 0
    place = text.index("[") + 1
    while text[start := BETWEEN.match(text, place).end()] != "]":
        line += text.count("\n", seen, start)
        lines.append(line)
        seen, (_, place) = start, decoder.raw_decode(text, start)
    return lines


def read_row(value: object, columns: dict | None, origin: str, folder: Path) -> Row:
    """Find the messages, or the raw text, in a line or row and check them; paths of images count from `folder`."""
    try:
        mapped = to_messages(value, columns)
        if not isinstance(mapped.messages, str):
            check_trainable({"messages": mapped.messages})
            mapped = mapped._replace(messages=[place_images(message, folder) for message in mapped.messages])
    except ValueError as error:
        return Row(origin, [], problem=f"{origin}: {error}")
    return Row(origin, *mapped)


def place_images(message: dict, folder: Path) -> dict:
    """Write the paths of a message's images in full.

    >>> place_images({"role": "user", "content": [{"type": "image", "url": "cat.png"}]}, Path("/pets"))["content"]
    [{'type': 'image', 'url': '/pets/cat.png'}]
    """
    if not has_image(message["content"]):
        return message
    is_path = [part["type"] == "image" and not part["url"].startswith("data:") for part in message["content"]]
    parts = zip(message["content"], is_path, strict=True)
    return message | {"content": [part | {"url": str((folder / part["url"]).resolve())} if path else part for part, path in parts]}


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
        return TableConversations(load_folder(path, split), columns, path.name, path)
    if path.suffix in JSON_FORMATS:
        return FileConversations(path, columns)
    if path.suffix in TABLE_FORMATS:
        return TableConversations(load_table(path), columns, path.name, path.parent)
    raise ValueError(f"{path}: unknown file type {path.suffix!r}; mixtures read {', '.join([*JSON_FORMATS, *TABLE_FORMATS])} and folders")


def load_table(path: Path) -> datasets.Dataset:
    kind = TABLE_FORMATS[path.suffix]
    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{path} cannot be read as {kind} ({reason}). Correct the file, or write it anew.") from error


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
    looked_in = ", ".join(dict.fromkeys(str(place / path) for place in places)) or "no folder"
    if not HUB_ID.fullmatch(path) or Path(path).suffix in (*JSON_FORMATS, *TABLE_FORMATS):
        raise FileNotFoundError(f"{path} is not there; looked for {looked_in}")
    try:
        return datasets.load_dataset(path, name, split=split)
    except OSError as error:
        raise FileNotFoundError(f"{path} is neither a file (looked for {looked_in}) nor to be had from the Hub: {error}") from error
