"""A task: indexed conversations, a view on some of them, and a judge of answers."""

import operator


class Task:
    """Serve conversations by index and judge completions.

    Subclass and give `num_examples()`, `get_example(index)` and, to evaluate, `evaluate(conversation, completion)` with `eval_type`.
    `start`, `stop` and `step` view the examples as a Python slice does: a `stop` beyond the data means "to the end".
    (nanochat reports the too large length there and fails on the first missing index.)

    >>> class Squares(Task):
    ...     def num_examples(self):
    ...         return 5
    ...     def get_example(self, index):
    ...         return {"messages": [{"role": "user", "content": f"{index}?"}, {"role": "assistant", "content": str(index**2)}]}
    >>> task = Squares(start=1, stop=100, step=2)
    >>> len(task), task[1]["messages"][1]["content"]
    (2, '9')
    """

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1):
        if start < 0:
            raise ValueError(f"start is {start}; a task starts at 0 or later")
        if stop is not None and stop < start:
            raise ValueError(f"stop is {stop}, before start {start}; give a stop of at least {start}")
        if step < 1:
            raise ValueError(f"step is {step}; a task steps forward by 1 or more")
        self.start, self.stop, self.step = start, stop, step

    @property
    def eval_type(self) -> str:
        """Say how answers are judged: "categorical" (choose one of `letters`) or "generative" (write a completion)."""
        raise NotImplementedError(f"{type(self).__name__} has no eval_type, so it can be trained on but not evaluated")

    def num_examples(self) -> int:
        """Count all examples, before start, stop and step."""
        raise NotImplementedError(f"{type(self).__name__} lacks num_examples()")

    def get_example(self, index: int) -> dict:
        """Return conversation `index` of all examples: {"messages": [...]} and what `evaluate` needs beside them."""
        raise NotImplementedError(f"{type(self).__name__} lacks get_example(index)")

    def evaluate(self, conversation: dict, completion: str) -> bool | int:
        """Judge a decoded completion against the conversation's last message."""
        raise NotImplementedError(f"{type(self).__name__} lacks evaluate(conversation, completion)")

    def evaluate_all(self, answers: list[tuple[dict, str]]) -> list[bool | int]:
        """Judge (conversation, completion) pairs; a task whose judging takes long may work on several at a time."""
        return [self.evaluate(conversation, completion) for conversation, completion in answers]

    def prepare_evaluation(self) -> str | None:
        """Make sure, before any model is loaded, that answers can be judged here; return what a user should know about how."""
        return None

    def reward(self, conversation: dict, completion: str) -> float:
        """Score a completion for reinforcement learning: the verdict as a number, unless a task has a finer measure."""
        return float(self.evaluate(conversation, completion))

    def fingerprint(self) -> str | None:
        """Identify the data behind the examples for the cache, or None when only reading every example can tell (slower, never wrong)."""
        return None

    def __len__(self) -> int:
        count = self.num_examples()
        if self.start > count:
            raise ValueError(f"{type(self).__name__} starts at {self.start} but has {count} examples")
        stop = count if self.stop is None else min(self.stop, count)
        return len(range(self.start, stop, self.step))

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside {type(self).__name__}, which has {len(self)} examples here")
        return self.get_example(self.start + index * self.step)
