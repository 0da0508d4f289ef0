"""The training mixture: conversations of several sources, in training order."""

import functools
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from chatsft import __version__
from chatsft.data.conversations import FileConversations, TableConversations, TaskConversations, open_path, open_task
from chatsft.data.entries import check_entry
from chatsft.tasks.bad_rows import handle_bad_rows
from chatsft.tasks.mixture import mixture_order

logger = logging.getLogger(__name__)

# Json keeps content as it is, a string in one message and a list of parts in the next
FEATURES = datasets.Features({"messages": datasets.Json(), "source": datasets.Value("string"), "origin": datasets.Value("string")})

# How a row was read, or what is wrong with it: kept in the cache too, so that a second run says the same
NOTES = datasets.Features(
    {
        "layout": datasets.Value("string"),
        "num_calls": datasets.Value("int32"),
        "unused": datasets.List(datasets.Value("string")),
        "problem": datasets.Value("string"),
    }
)

Conversations = TaskConversations | FileConversations | TableConversations


def load_mixture(
    entries: Sequence[dict],
    *,
    data_root: str | Path | None = None,
    folders: Sequence[str | Path] = (".",),
    order: str = "shuffled",
    on_bad_row: str = "error",
    name: str = "mixture",
) -> datasets.Dataset:
    """Load the conversations of all entries in training order.

    Each entry is shuffled (`shuffle: seed`), cut (`start`, `stop`), then repeated. What was read is kept in the `datasets` cache until a
    file or the package changes, so the result has the same fingerprint in every process and later `.map` stages are cached too. How files
    and datasets were read is logged, whether from the cache or not.

    Args:
        entries: `{task: GSM8K, split: train, repeat: 4}`, `{path: my.jsonl}`, `{path: org/dataset, stop: 10000, columns: {...}}`, ...
        data_root: where tasks find their files, and the last place for relative paths.
        folders: where relative paths are looked up first, in this order.
        order: "shuffled" (nanochat's TaskMixture) or "sequence".
        on_bad_row: "error" names every row that cannot be trained on, "skip" leaves them out with a warning.
        name: of the mixture, for errors.

    Returns:
        Columns `messages`, `source` (task or file) and `origin` (the line or row, for messages to people).

    >>> load_mixture([{"task": "Arithmetic", "size": 2}], order="sequence")[1]["origin"]
    'Arithmetic[1]'
    """
    if not entries:
        raise ValueError(f"{name} is empty; give at least one entry with task: or path:")
    places = [Path(folder) for folder in (*folders, data_root) if folder is not None]
    parts = [load_entry(entry, f"{name} entry {number}", data_root, places, on_bad_row) for number, entry in enumerate(entries, 1)]
    repeats = [entry.get("repeat") or 1 for entry in entries]
    return datasets.concatenate_datasets(parts).select(order_rows([len(part) for part in parts], repeats, order))


def order_rows(lengths: list[int], repeats: list[int], order: str) -> list[int]:
    """Number the rows of the concatenated entries in training order; a repeated entry counts as several equal ones.

    >>> order_rows([2, 1], [1, 2], "sequence")
    [0, 1, 2, 2]
    """
    firsts = itertools.accumulate(lengths, initial=0)
    repeated = [(first, length) for first, length, repeat in zip(firsts, lengths, repeats, strict=False) for _ in range(repeat)]
    pairs = mixture_order([length for _, length in repeated], order)
    return [repeated[entry][0] + index for entry, index in pairs]


def load_entry(entry: dict, where: str, data_root: str | Path | None, places: list[Path], on_bad_row: str) -> datasets.Dataset:
    """Load one entry, from the cache if nothing has changed, without its bad rows."""
    check_entry(entry, where)
    conversations = open_task(entry, data_root) if "task" in entry else open_path(entry, places)
    try:
        rows = datasets.Dataset.from_generator(
            generate_rows,
            features=datasets.Features({**FEATURES, **NOTES}),
            gen_kwargs={"conversations": conversations, "entry": entry},
            fingerprint=make_fingerprint(entry, conversations.fingerprint),
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    problems = rows["problem"][:]
    handle_bad_rows(conversations.source, [problem for problem in problems if problem], len(problems), on_bad_row)
    if any(problems):
        rows = rows.select([index for index, problem in enumerate(problems) if not problem])
    if not len(rows):
        raise ValueError(f"{conversations.source}: no conversations left; every row is left out for its problem")
    if "path" in entry:
        logger.info("%s", format_report(conversations.source, rows))
    return rows.remove_columns(list(NOTES))


def format_report(source: str, rows: datasets.Dataset) -> str:
    """Say what the rows of a file or dataset were read as.

    >>> rows = {"layout": ["messages", "ShareGPT turns"], "num_calls": [2, 0], "unused": [["id"], []]}
    >>> format_report("chat.jsonl", datasets.Dataset.from_dict(rows))
    'chat.jsonl: 2 rows, read as messages (1), ShareGPT turns (1); tool calls as python parts (2); not used: id (1)'
    """
    unused = Counter(field for fields in rows["unused"] for field in fields)
    num_calls = sum(rows["num_calls"])
    report = f"{source}: {len(rows):,} rows, read as {format_counts(Counter(rows['layout']))}"
    report += f"; tool calls as python parts ({num_calls:,})" if num_calls else ""
    return report + (f"; not used: {format_counts(unused)}" if unused else "")


def format_counts(counts: Counter) -> str:
    """Write counts, the largest first.

    >>> format_counts(Counter("aab"))
    'a (2), b (1)'
    """
    return ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())


def generate_rows(conversations: Conversations, entry: dict) -> Iterator[dict]:
    """Yield the rows of an entry; all bad rows of a file come first, those outside the cut too."""
    if not len(conversations):
        raise ValueError(f"{conversations.source} is empty. Write one conversation a line.")
    picked = pick_rows(len(conversations), entry)
    if not len(picked):
        raise ValueError(f"{conversations.source}: no conversations left; it has {len(conversations)}, start is {entry.get('start') or 0}")
    bad = conversations.list_bad_rows()
    listed = {row.origin for row in bad}
    picked_rows = (conversations.read(int(index)) for index in picked)
    for row in itertools.chain(bad, (row for row in picked_rows if row.origin not in listed)):
        yield row._asdict() | {"source": conversations.source}


def pick_rows(length: int, entry: dict) -> Sequence[int]:
    """List the rows an entry takes: shuffled as `datasets.Dataset.shuffle(seed)` does, then cut.

    >>> pick_rows(5, {"shuffle": 42, "stop": 3}).tolist()
    [4, 2, 3]
    """
    seed = entry.get("shuffle")
    rows = np.arange(length) if seed is None else np.random.default_rng(seed).permutation(length)
    return rows[entry.get("start") or 0 : entry.get("stop")]


def make_fingerprint(entry: dict, content: str) -> str:
    """Name the cache of an entry: it changes with the entry, the data, the package version and (for developers) the code that reads."""
    key = json.dumps([__version__, hash_code(), entry, content], sort_keys=True, default=str)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


@functools.cache
def hash_code() -> str:
    package = Path(__file__).parents[1]
    files = sorted([*package.glob("data/*.py"), *package.glob("tasks/*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
