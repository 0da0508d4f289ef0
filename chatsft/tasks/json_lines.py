"""JSON lines, read so that every error names its line."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) for every line that is not blank, without the byte order mark that some editors write first."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(codecs.BOM_UTF8).strip()
            if text:
                yield number, text


def parse_line(line: bytes, where: str) -> object:
    """Return the value of a line, or raise with where it stands."""
    try:
        text = line.decode("utf-8")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}). Each line holds one JSON value.") from None
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deeply to be a conversation. Remove it.") from None
    return replace_lone_surrogates(value) if "\\ud" in text.lower() else value


def replace_lone_surrogates(value: object) -> object:
    """Turn half characters ("\\ud83d" without its other half) into U+FFFD, as nanochat's encoder does; no file can store them."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def file_fingerprint(path: str | Path) -> str:
    """Identify a file's content by where it is, its size and its modification time, without reading it."""
    stat = Path(path).stat()
    return f"{Path(path).resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
