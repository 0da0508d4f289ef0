"""The tasks to evaluate, by name."""

import sys
from collections.abc import Sequence

from accelerate import PartialState

from chatsft.evaluation.statistics import BASELINES
from chatsft.tasks import Task, create_task
from chatsft.tasks.registry import find_task, list_options

SPELLING_SIZE = 256
"""Words of a spelling test; nanochat's SpellingBee has so many."""


def select_tasks(names: Sequence[str], data_root: str | None, allow_weak_sandbox: bool = False) -> dict[str, Task]:
    """Make the test split of every named task, and see that answers to it can be judged; a name may be several, as in "A|B|C".

    Raises:
        ValueError: on an unknown name, with the nearest known one, and on a task that only trains.
        OSError: on a task that runs generated code where no sandbox holds, unless `allow_weak_sandbox` is set.
    """
    tasks = {}
    for name in dict.fromkeys(name.strip() for group in names for name in group.split("|")):
        task_class, _ = find_task(name)
        if task_class.eval_type is Task.eval_type:
            raise ValueError(f"task {name} can be trained on but not evaluated. Tasks to evaluate: {', '.join(BASELINES)}.")
        given = {"split": "test", "allow_weak_sandbox": allow_weak_sandbox}
        options = {key: value for key, value in given.items() if key in list_options(task_class)}
        if name in ("SpellingBee", "SimpleSpelling"):
            options["size"] = SPELLING_SIZE
        tasks[name] = create_task(name, data_root=data_root, **options)
        if note := tasks[name].prepare_evaluation():
            PartialState().print(note, file=sys.stderr, flush=True)
    return tasks
