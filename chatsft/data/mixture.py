"""The training mixture: conversations of several sources, in training order."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from chatsft import __version__
from chatsft.data.conversations import FileConversations, TableConversations, TaskConversations, open_path, open_task
from chatsft.data.entries import check_entry
from chatsft.tasks.mixture import mixture_order

# Json keeps content as it is, a string in one message and a list of parts in the next
FEATURES = datasets.Features({"messages": datasets.Json(), "source": datasets.Value("string"), "origin": datasets.Value("string")})

Conversations = TaskConversations | FileConversations | TableConversations


def load_mixture(
    entries: Sequence[dict],
    *,
    data_root: str | Path | None = None,
    folders: Sequence[str | Path] = (".",),
    order: str = "shuffled",
) -> datasets.Dataset:
    """Load the conversations of all entries in training order.

    Each entry is shuffled (`shuffle: seed`), cut (`start`, `stop`), then repeated. What was read is kept in the `datasets` cache until a
    file or the package changes, so the result has the same fingerprint in every process and later `.map` stages are cached too.

    Args:
        entries: `{task: GSM8K, split: train, repeat: 4}`, `{path: my.jsonl}`, `{path: org/dataset, stop: 10000, columns: {...}}`, ...
        data_root: where tasks find their files, and the last place for relative paths.
        folders: where relative paths are looked up first, in this order.
        order: "shuffled" (nanochat's TaskMixture) or "sequence".

    Returns:
        Columns `messages`, `source` (task or file) and `origin` (the line or row, for messages to people).

    >>> load_mixture([{"task": "Arithmetic", "size": 2}], order="sequence")[1]["origin"]
    'Arithmetic[1]'
    """
    if not entries:
        raise ValueError("the mixture is empty; give at least one entry with task: or path:")
    places = [Path(folder) for folder in (*folders, data_root) if folder is not None]
    parts = [load_entry(entry, f"mixture entry {number}", data_root, places) for number, entry in enumerate(entries, 1)]
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


def load_entry(entry: dict, where: str, data_root: str | Path | None, places: list[Path]) -> datasets.Dataset:
    """Load one entry, from the cache if nothing has changed."""
    check_entry(entry, where)
    conversations = open_task(entry, data_root) if "task" in entry else open_path(entry, places)
    try:
        return datasets.Dataset.from_generator(
            generate_rows,
            features=FEATURES,
            gen_kwargs={"conversations": conversations, "entry": entry},
            fingerprint=make_fingerprint(entry, conversations.fingerprint),
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None


def generate_rows(conversations: Conversations, entry: dict) -> Iterator[dict]:
    picked = pick_rows(len(conversations), entry)
    if not len(picked):
        raise ValueError(f"{conversations.source}: no conversations left; it has {len(conversations)}, start is {entry.get('start') or 0}")
    for index in picked:
        origin, messages = conversations.read(int(index))
        yield {"messages": messages, "source": conversations.source, "origin": origin}


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
