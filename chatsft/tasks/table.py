"""The table behind a task: from the Hub, or from a file under data_root."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from chatsft.tasks.bad_rows import handle_bad_rows
from chatsft.tasks.json_lines import file_fingerprint, parse_line, read_lines

SHUFFLE_SEED = 42


@dataclass(frozen=True)
class Table:
    """Rows in nanochat's order, and what identifies them for the data cache."""

    rows: Sequence[dict]
    fingerprint: str


def load_table(hub: dict, file: str, columns: tuple[str, ...], data_root: str | Path | None) -> Table:
    """Load one split, shuffled with seed 42 as nanochat does.

    Args:
        hub: arguments of `datasets.load_dataset`, used when `data_root` is None.
        file: where the same rows lie under `data_root`, as JSON lines.
        columns: those the task reads; a row without one is an error.
    """
    if data_root is not None:
        return load_local_table(Path(data_root) / file, columns)
    try:
        dataset = datasets.load_dataset(**hub).shuffle(seed=SHUFFLE_SEED)
    except OSError as error:
        raise OSError(f"{hub['path']} is not to be had from the Hub ({error}); with data_root it is read from files") from error
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{hub['path']}: no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    return Table(dataset, dataset._fingerprint)


def load_local_table(path: Path, columns: tuple[str, ...]) -> Table:
    """Read a file of JSON lines and shuffle it as `datasets.Dataset.shuffle(seed=42)` would."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. Put the data at that path, or leave data_root out to load it from the Hub.")
    rows, problems = [], []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            rows.append(parse_line(line, where))
            check_columns(rows[-1], columns, where)
        except ValueError as error:
            problems.append(str(error))
    handle_bad_rows(path.name, problems, len(rows))
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))
    return Table([rows[index] for index in order], file_fingerprint(path))


def check_columns(row: object, columns: tuple[str, ...], where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}, expected an object with {', '.join(columns)}")
    for column in columns:
        if column not in row:
            raise ValueError(f"{where}: no column {column!r}; this line has {', '.join(row) or 'none'}")


def check_choice(name: str, value: str | None, known: tuple[str, ...]) -> None:
    """Raise unless an option (subset, split) has one of its known values."""
    if value not in known:
        raise ValueError(f"{name} is {'not set' if value is None else repr(value)}; it is one of {', '.join(known)}")
