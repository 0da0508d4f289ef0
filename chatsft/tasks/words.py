"""The English word list behind the spelling tasks."""

import random
from pathlib import Path

import datasets

WORD_LIST_URL = "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt"
TEST_SEED_OFFSET = 10_000_000
MAX_DRAWS = 100


def find_word_list(data_root: str | Path | None) -> Path:
    """Return the word list under `data_root`, or download it (once; `datasets` keeps it)."""
    if data_root is None:
        return Path(datasets.DownloadManager().download(WORD_LIST_URL))
    path = Path(data_root) / "words" / "words_alpha.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there. Put a list of one word per line there, or leave data_root out to download it.")
    return path


def read_words(path: Path) -> list[str]:
    """Read one word per line, in file order: the order decides which word a seed draws."""
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not all(words):
        raise ValueError(f"{path}:{words.index('') + 1}: an empty line; the list has one word per line")
    if not words:
        raise ValueError(f"{path}: no words; the list has one word per line")
    return words


def train_words(words: list[str], num_rows: int) -> frozenset[str]:
    """Collect the words that the first `num_rows` training rows ask for (a row's word is the first draw of its seed)."""
    return frozenset(random.Random(seed).choice(words) for seed in range(num_rows))


def draw_word(rng: random.Random, words: list[str], excluded: frozenset[str]) -> str:
    """Draw a word outside `excluded`, or any word if after many draws all were in it (a word list smaller than the training set)."""
    for _ in range(MAX_DRAWS):
        word = rng.choice(words)
        if word not in excluded:
            break
    return word
