"""Evaluate a model on a task: share out the problems, answer them, sum up."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatsft.evaluation.categorical import choose_letters
from chatsft.evaluation.generative import write_answers
from chatsft.evaluation.metrics import load_metric
from chatsft.evaluation.problems import Problem, ProblemResult, batch_by_length, render_problems
from chatsft.evaluation.token_losses import MAX_BATCH_TOKENS
from chatsft.generation.tool_use import context_length, max_prompt_tokens
from chatsft.tasks import Task

ANSWERS_AT_A_TIME = 128
"""Written together by default: a GPU decodes them in hardly more time than one, and the keys and values of so many fit."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate; all but the first two matter to written answers only.

    Args:
        batch_size: most problems answered together. By default 128 written answers, and letters by the tokens of their prompts.
        max_problems: only the first ones of a task; a number, or one for each kind: {categorical: 1024, generative: 64}.
        temperature: 0 is greedy.
        num_samples: answers per problem. A problem counts as solved if any of them is right.
        repetition_penalty, exponential_decay_length_penalty: see `generate_completions`.
    """

    batch_size: int | None = None
    max_problems: int | dict[str, int] | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 50
    num_samples: int = 1
    seed: int = 42
    repetition_penalty: float = 1.0
    exponential_decay_length_penalty: tuple[int, float] | None = None

    def most_problems(self, task: Task) -> int | None:
        """Return how many of a task's problems to take, None for all."""
        return self.max_problems.get(task.eval_type) if isinstance(self.max_problems, dict) else self.max_problems


@dataclass(frozen=True)
class TaskReport:
    """The outcome of one task.

    Args:
        accuracy: share of problems of which any answer is right.
        interval: 95 % Wilson interval of the accuracy.
        num_truncated: prompts that lost their beginning because they are longer than the context.
        pass_at: unbiased pass@k by k, for k = 1, 2, 4, ... up to the number of samples.
    """

    task: str
    accuracy: float
    interval: tuple[float, float]
    num_problems: int
    num_correct: int
    num_truncated: int
    pass_at: dict[int, float]
    problems: list[ProblemResult]


def evaluate_task(
    name: str, task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: EvaluationOptions | None = None
) -> TaskReport:
    """Answer a task's problems and report; every rank of a launch does its share and gets the whole report.

    Whole batches go to a rank, so that each is computed, and sampled, as it would be in one process.

    Raises:
        ValueError: on a problem that cannot be put to this model, with the task and the problem.
    """
    options = options or EvaluationOptions()
    answer = _write_share if task.eval_type == "generative" else _choose_share
    try:
        with evaluating(model):
            results = answer(task, model, tokenizer, options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return summarize(name, gather_object(results))


def summarize(name: str, results: list[ProblemResult]) -> TaskReport:
    """Count the verdicts."""
    results = sorted(results, key=lambda result: result.index)
    figures = load_metric("task_accuracy").compute(predictions=[result.correct for result in results])
    return TaskReport(task=name, num_truncated=sum(result.truncated for result in results), problems=results, **figures)


def own_share(batches: list) -> list[tuple[int, list]]:
    """Return the batches of this rank, each with its number among all."""
    state = PartialState()
    return list(enumerate(batches))[state.process_index :: state.num_processes]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and the like off, and back to how they were."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _choose_share(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: EvaluationOptions
) -> list[ProblemResult]:
    problems = render_problems(task, tokenizer, context_length(model.config), options.most_problems(task))
    batches = batch_by_length(problems, _prompt_length, options.batch_size, MAX_BATCH_TOKENS)
    return choose_letters(model, tokenizer, task, [batch for _, batch in own_share(batches)])


def _write_share(task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: EvaluationOptions) -> list[ProblemResult]:
    max_tokens = max_prompt_tokens(model.config, options.max_new_tokens)
    batch_size = options.batch_size or ANSWERS_AT_A_TIME
    problems = render_problems(task, tokenizer, max_tokens, options.most_problems(task))
    if options.temperature:  # what is drawn depends on what is drawn together, whatever the number of processes
        batches = own_share(batch_by_length(problems, _prompt_length, batch_size))
    else:  # all at once, so that rows that end make room for others
        batches = [(0, [problem for _, problem in own_share(problems)])]
    results = []
    for number, batch in batches:
        results += write_answers(
            model,
            tokenizer,
            task,
            batch,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            num_samples=options.num_samples,
            seed=options.seed + number,
            batch_size=batch_size,
            repetition_penalty=options.repetition_penalty,
            exponential_decay_length_penalty=options.exponential_decay_length_penalty,
        )
    return results


def _prompt_length(problem: Problem) -> int:
    return len(problem.prompt_ids)
