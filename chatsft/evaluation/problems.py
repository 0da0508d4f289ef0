"""Problems to solve, the record of each answer, and the batches they are answered in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from chatsft.evaluation.chat_format import render_prompt
from chatsft.model.conversation import conversation_spans
from chatsft.tasks import Task

Item = TypeVar("Item")


@dataclass(frozen=True)
class Problem:
    """A conversation of a task with the token ids that ask for its answer."""

    index: int
    conversation: dict
    prompt_ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class ProblemResult:
    """What the model was shown, the answer of the data set, what the model answered, and the verdict on each answer."""

    index: int
    prompt: str
    expected: str
    completions: list[str]
    correct: list[bool]
    truncated: bool


def render_problems(task: Task, tokenizer: PreTrainedTokenizerBase, max_tokens: int, max_problems: int | None = None) -> list[Problem]:
    """Render the prompts of a task's first problems.

    A prompt longer than `max_tokens` loses its beginning and is marked: the end holds the question's last words and the
    token that asks for an answer. (nanochat cuts the end at 2048.)
    """
    num_problems = len(task) if max_problems is None else min(max_problems, len(task))
    problems = []
    for index in range(num_problems):
        conversation = task[index]
        prompt_ids = render_prompt(tokenizer, conversation["messages"][:-1])
        problems.append(Problem(index, conversation, prompt_ids[-max_tokens:], truncated=len(prompt_ids) > max_tokens))
    return problems


def batch_by_length(
    items: Sequence[Item], length: Callable[[Item], int], batch_size: int | None = None, max_tokens: int | None = None
) -> list[list[Item]]:
    """Split into batches of similar length, longest first so that a batch too large for memory fails at once.

    Args:
        length: tokens of an item.
        batch_size: most items of a batch.
        max_tokens: most tokens of a batch, padding included; an item longer than that has a batch of its own.

    >>> batch_by_length(["aa", "aaaaa", "aaa"], len, batch_size=2)
    [['aaaaa', 'aaa'], ['aa']]
    >>> batch_by_length(["aa", "aaaaa", "aaa"], len, max_tokens=8)
    [['aaaaa'], ['aaa', 'aa']]
    """
    batches: list[list[Item]] = []
    for item in sorted(items, key=lambda item: -length(item)):
        last = batches[-1] if batches else None
        is_full = last is None or (batch_size is not None and len(last) >= batch_size)
        if is_full or (max_tokens is not None and (len(last) + 1) * length(last[0]) > max_tokens):
            batches.append([item])
        else:
            last.append(item)
    return batches


def judge(task: Task, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], answers: Sequence[list[str]]) -> list[ProblemResult]:
    """Ask the task about each problem's completions, all at once: one that takes long works on several at a time."""
    pairs = [(problem.conversation, completion) for problem, texts in zip(problems, answers, strict=True) for completion in texts]
    verdicts = iter(task.evaluate_all(pairs))
    prompts = tokenizer.batch_decode([problem.prompt_ids for problem in problems]) if problems else []
    return [
        ProblemResult(
            index=problem.index,
            prompt=prompt,
            expected=_expected_text(problem.conversation),
            completions=completions,
            correct=[bool(next(verdicts)) for _ in completions],
            truncated=problem.truncated,
        )
        for problem, prompt, completions in zip(problems, prompts, answers, strict=True)
    ]


def _expected_text(conversation: dict) -> str:
    """Write the conversation's own answer as completions are written: with tool markers, without the token that ends it."""
    _, _, *spans = conversation_spans(conversation["messages"][-1:])
    return "".join(opening + text + closing for opening, text, closing, _ in spans).removesuffix("<|assistant_end|>")
