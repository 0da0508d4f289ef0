"""What a mixture entry may say."""

from collections.abc import Sequence

from chatsft.tasks.registry import find_task, list_options, suggest

WHICH_ROWS = ("start", "stop", "shuffle", "repeat")
TASK_KEYS = ("task", *WHICH_ROWS)
PATH_KEYS = ("path", "name", "split", "columns", *WHICH_ROWS)
COLUMNS_HINT = "{messages: COLUMN}, {prompt: COLUMN, completion: COLUMN} or {text: COLUMN}"
COLUMNS = ({"messages"}, {"prompt", "completion"}, {"text"})


def check_entry(entry: object, where: str) -> None:
    """Raise unless an entry names one source and its numbers can be meant.

    A task entry also takes the task's own options.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}; expected an object, as {{task: GSM8K, split: train}} or {{path: chats.jsonl}}")
    if ("task" in entry) == ("path" in entry):
        given = "both task and path" if "task" in entry else f"neither task nor path, but {', '.join(map(str, entry)) or 'nothing'}"
        raise ValueError(f"{where} has {given}; give exactly one of them")
    kind = "task" if "task" in entry else "path"
    if not isinstance(entry[kind], str):
        raise ValueError(f"{where}: {kind} is {entry[kind]!r}; expected a name")
    if kind == "task":
        check_keys(entry, [*TASK_KEYS, *list_options(find_task(entry["task"])[0])], where)
    else:
        check_keys(entry, PATH_KEYS, where)
        check_columns(entry.get("columns"), where)
    for key, least in {"start": 0, "stop": 0, "shuffle": 0, "size": 0, "repeat": 1}.items():
        check_number(entry, key, least, where)
    start, stop = entry.get("start") or 0, entry.get("stop")
    if stop is not None and stop <= start:
        raise ValueError(f"{where}: stop {stop} leaves nothing after start {start}")


def check_keys(entry: dict, known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{suggest(str(key), known)}; it takes {', '.join(dict.fromkeys(known))}")


def check_columns(columns: object, where: str) -> None:
    if columns is not None and (not isinstance(columns, dict) or set(columns) not in COLUMNS):
        raise ValueError(f"{where}: columns is {columns!r}; expected {COLUMNS_HINT}")


def check_number(entry: dict, key: str, least: int, where: str) -> None:
    value = entry.get(key)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        hint = " (the seed, 42 in nanochat)" if key == "shuffle" else ""
        raise ValueError(f"{where}: {key} is {value!r}; expected a whole number{hint}")
    if value < least:
        raise ValueError(f"{where}: {key} is {value}; expected {least} or more")
