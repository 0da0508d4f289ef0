"""Problems to solve, the record of each answer, and the batches they are answered in."""

from dataclasses import dataclass

from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.tasks import Task


@dataclass(frozen=True)
class Problem:
    """A conversation of a task with the token ids that ask for its answer."""

    index: int
    conversation: dict
    prompt_ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class ProblemResult:
    """What the model was shown, what it answered, and the verdict on each answer."""

    index: int
    prompt: str
    completions: list[str]
    correct: list[bool]
    truncated: bool


def render_problems(task: Task, tokenizer: GPTTokenizer, max_tokens: int, max_problems: int | None = None) -> list[Problem]:
    """Render the prompts of a task's first problems.

    A prompt longer than `max_tokens` loses its beginning and is marked: the end holds the question's last words and the
    token that asks for an answer. (nanochat cuts the end at 2048.)
    """
    num_problems = len(task) if max_problems is None else min(max_problems, len(task))
    problems = []
    for index in range(num_problems):
        conversation = task[index]
        prompt_ids = _render_prompt(tokenizer, conversation)
        problems.append(Problem(index, conversation, prompt_ids[-max_tokens:], truncated=len(prompt_ids) > max_tokens))
    return problems


def batch_problems(problems: list[Problem], batch_size: int) -> list[list[Problem]]:
    """Split problems into batches of similar length, longest first so that a batch too large for memory fails at once.

    >>> batches = batch_problems([Problem(i, {}, [0] * n, False) for i, n in enumerate([2, 5, 3])], 2)
    >>> [[problem.index for problem in batch] for batch in batches]
    [[1, 2], [0]]
    """
    ordered = sorted(problems, key=lambda problem: -len(problem.prompt_ids))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def judge(task: Task, problem: Problem, tokenizer: GPTTokenizer, completions: list[str]) -> ProblemResult:
    """Ask the task about each completion."""
    return ProblemResult(
        index=problem.index,
        prompt=tokenizer.decode(problem.prompt_ids),
        completions=completions,
        correct=[bool(task.evaluate(problem.conversation, completion)) for completion in completions],
        truncated=problem.truncated,
    )


def _render_prompt(tokenizer: GPTTokenizer, conversation: dict) -> list[int]:
    """Return what `render_for_completion` gives, at any length."""
    ids, _ = tokenizer.render_conversation({"messages": conversation["messages"][:-1]}, max_tokens=None)
    return [*ids, tokenizer.encode_special("<|assistant_start|>")]
