"""Problems to answer: the prompts of tasks, and the tasks themselves as judges."""

from collections.abc import Callable, Sequence
from pathlib import Path

import datasets

from chatsft.arguments import RecipeError
from chatsft.data.conversations import open_task
from chatsft.data.entries import check_entry
from chatsft.data.mixture import pick_rows
from chatsft.generation.tool_state import ControlTokens
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.tasks import Task
from chatsft.tasks.mixture import mixture_order


def load_prompts(entries: Sequence[dict], data_root: str | Path | None, key: str) -> tuple[datasets.Dataset, list[Task]]:
    """Load the problems of tasks, each entry shuffled, cut and repeated as in any mixture; several are mixed in nanochat's order.

    Returns:
        Columns `prompt` (messages up to the answer), `source` (a task's name), `judge` (which of the tasks) and `index` into it; the tasks.

    Raises:
        ValueError: on an entry that cannot be meant, and on a task that judges no written answers.
    """
    if not entries:
        raise RecipeError(f"{key} is empty; give at least one entry with task:.")
    tasks = [open_judge(entry, f"{key} entry {number}", data_root) for number, entry in enumerate(entries, 1)]
    picked = []
    for number, (entry, task) in enumerate(zip(entries, tasks, strict=True), 1):
        picked.append([int(index) for index in pick_rows(len(task), entry)] * (entry.get("repeat") or 1))
        if not picked[-1]:
            start = entry.get("start") or 0
            raise RecipeError(f"{key} entry {number}: no problems left; {entry['task']} has {len(task)}, start is {start}.")
    rows = []
    for judge, place in mixture_order([len(indices) for indices in picked], "shuffled" if len(tasks) > 1 else "sequence"):
        index = picked[judge][place]
        prompt = tasks[judge][index]["messages"][:-1]
        rows.append({"prompt": prompt, "source": entries[judge]["task"], "judge": judge, "index": index})
    return datasets.Dataset.from_list(rows), tasks


def open_judge(entry: dict, place: str, data_root: str | Path | None) -> Task:
    """Make the task of an entry and see that it judges written answers."""
    check_entry(entry, place)
    if "task" not in entry:
        raise RecipeError(f"{place} has path {entry['path']!r}, but rewards come from a task's own score. Name a task, as GSM8K.")
    task = open_task(entry, data_root).task
    if not judges_text(task):
        raise RecipeError(f"{place}: {entry['task']} judges no written answers, so it gives no reward. Name a task that does, as GSM8K.")
    return task


def judges_text(task: Task) -> bool:
    try:
        return task.eval_type == "generative"
    except NotImplementedError:  # can only be trained on
        return False


def task_reward(tasks: Sequence[Task], tokenizer: GPTTokenizer) -> Callable[..., list[float]]:
    """Return a reward function for TRL: each task's own score of the text that `chatsft.eval` would show it."""

    def reward(completion_ids: list[list[int]], judge: list[int], index: list[int], **columns) -> list[float]:
        return [score(tasks[which], number, ids, tokenizer) for which, number, ids in zip(judge, index, completion_ids, strict=True)]

    return reward


def score(task: Task, index: int, completion: list[int], tokenizer: GPTTokenizer) -> float:
    """Let a task score a completion, with or without the token that ended it."""
    terminal = ControlTokens.of(tokenizer).terminal
    return task.reward(task[index], tokenizer.decode(completion[:-1] if completion[-1:] and completion[-1] in terminal else completion))
