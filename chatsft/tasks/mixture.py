"""The order in which several tasks are trained on."""

import random

from chatsft.tasks.task import Task

MIXTURE_SEED = 42


def mixture_order(lengths: list[int], order: str = "shuffled") -> list[tuple[int, int]]:
    """List (entry, index) pairs in training order.

    "shuffled" is nanochat's TaskMixture: all pairs in entry order, shuffled with seed 42. "sequence" leaves them in entry order.

    >>> mixture_order([1, 2], "sequence")
    [(0, 0), (1, 0), (1, 1)]
    >>> mixture_order([0, 3])
    [(1, 1), (1, 0), (1, 2)]
    """
    if order not in ("shuffled", "sequence"):
        raise ValueError(f"mixture order is {order!r}; it is 'shuffled' or 'sequence'")
    pairs = [(entry, index) for entry, length in enumerate(lengths) for index in range(length)]
    if order == "shuffled":
        random.Random(MIXTURE_SEED).shuffle(pairs)
    return pairs


class TaskMixture(Task):
    """Serve several tasks as one, shuffled. To weight a task, list it more than once."""

    order = "shuffled"

    def __init__(self, tasks: list[Task], **kwargs):
        super().__init__(**kwargs)
        self.tasks = tasks
        self.lengths = [len(task) for task in tasks]
        self.index_map = mixture_order(self.lengths, self.order)

    def num_examples(self) -> int:
        return len(self.index_map)

    def get_example(self, index: int) -> dict:
        entry, local_index = self.index_map[index]
        return self.tasks[entry][local_index]


class TaskSequence(TaskMixture):
    """Serve several tasks one after the other, as a curriculum."""

    order = "sequence"
