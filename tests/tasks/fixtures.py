"""Recorded conversations, and folders of files for tasks to read."""

import json
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tasks"


def load_fixture(name: str):
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


def write_lines(path: Path, values: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def write_words(data_root: Path, words: str | None = None) -> Path:
    path = data_root / "words" / "words_alpha.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words or (FIXTURES / "words_alpha.txt").read_text(encoding="utf-8"), encoding="utf-8")
    return data_root


def in_file_order(task) -> list[dict]:
    """Undo the task's shuffle."""
    conversations = [None] * len(task)
    for index, place in enumerate(np.random.default_rng(42).permutation(len(task))):
        conversations[place] = task[index]
    return conversations
