"""Tasks by name."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from chatsft.tasks.arc import ARC
from chatsft.tasks.arithmetic import Arithmetic
from chatsft.tasks.gsm8k import GSM8K
from chatsft.tasks.humaneval import HumanEval
from chatsft.tasks.mmlu import MMLU
from chatsft.tasks.simplespelling import SimpleSpelling
from chatsft.tasks.smoltalk import SmolTalk
from chatsft.tasks.spellingbee import SpellingBee
from chatsft.tasks.task import Task

TASKS = {
    "ARC-Easy": (ARC, {"subset": "ARC-Easy"}),
    "ARC-Challenge": (ARC, {"subset": "ARC-Challenge"}),
    "MMLU": (MMLU, {}),
    "GSM8K": (GSM8K, {}),
    "HumanEval": (HumanEval, {}),
    "SmolTalk": (SmolTalk, {}),
    "SimpleSpelling": (SimpleSpelling, {}),
    "SpellingBee": (SpellingBee, {}),
    "Arithmetic": (Arithmetic, {}),
}


def create_task(name: str, *, data_root: str | Path | None = None, **options) -> Task:
    """Make a task by its name, or a class of your own as "module:Class".

    Args:
        data_root: folder with the data as files; None loads from the Hub. Tasks without data ignore it.
        options: what the task's constructor takes (split, size, start, stop, ...).

    >>> task = create_task("Arithmetic", split="test", size=3)
    >>> len(task), task.eval_type
    (3, 'generative')
    """
    task_class, fixed = find_task(name)
    known = list_options(task_class)
    for option in options:
        if option not in known or option in fixed:
            raise ValueError(f"task {name} has no option {option!r}{suggest(option, known)}; it takes {', '.join(known)}")
    if data_root is not None and "data_root" in known:
        options["data_root"] = data_root
    missing = [option for option, required in known.items() if required and option not in options | fixed]
    if missing:
        raise ValueError(f"task {name} needs the option {missing[0]!r}")
    return task_class(**fixed, **options)


def find_task(name: str) -> tuple[type[Task], dict]:
    """Return a task's class and the options its name stands for."""
    if name in TASKS:
        return TASKS[name]
    if ":" in name:
        return import_task(name), {}
    raise ValueError(f"no task {name!r}{suggest(name, TASKS)}; known are {', '.join(TASKS)}, and module:Class for your own")


def import_task(name: str) -> type[Task]:
    """Import "module:Class" and see that it is a Task; modules in the working folder are found however the program was started."""
    module_name, _, class_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        task_class = vars(importlib.import_module(module_name))[class_name]
    except ModuleNotFoundError as error:
        raise ValueError(f"task {name!r}: {error}. The module has to be importable, from the working folder for example.") from error
    except KeyError:
        raise ValueError(f"task {name!r}: module {module_name} has no {class_name!r}") from None
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise ValueError(f"task {name!r} is not a subclass of chatsft.tasks.Task")
    return task_class


def list_options(task_class: type[Task]) -> dict[str, bool]:
    """List the constructor's options and whether each must be given; **kwargs stands for the parent class's."""
    options = {}
    for cls in task_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                options.setdefault(parameter.name, parameter.default is parameter.empty)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return options


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which known word is meant, if one is near; "arc-easy" is near "ARC-Easy".

    >>> suggest("splt", ["split", "size"])
    ' (did you mean split?)'
    """
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.5)
    return f" (did you mean {by_lower_case[near[0]]}?)" if near else ""
