"""Evaluate a model on one task, divided among the ranks of a launch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from chatsft.evaluation.categorical import choose_letters
from chatsft.evaluation.generative import write_answers
from chatsft.evaluation.problems import Problem, ProblemResult, batch_problems, render_problems
from chatsft.evaluation.statistics import pass_at_k, wilson_interval
from chatsft.generation.tool_use import max_prompt_tokens
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.tasks import Task


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate; all but the first two matter to written answers only.

    Args:
        batch_size: problems answered together.
        max_problems: only the first ones of the task; None is all.
        temperature: 0 is greedy.
        num_samples: answers per problem. A problem counts as solved if any of them is right.
    """

    batch_size: int = 8
    max_problems: int | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 50
    num_samples: int = 1
    seed: int = 42


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
    name: str, task: Task, model: PreTrainedModel, tokenizer: GPTTokenizer, options: EvaluationOptions | None = None
) -> TaskReport:
    """Answer a task's problems and report; every rank of a launch does its share and gets the whole report.

    Whole batches go to a rank, so that each is computed, and sampled, as it would be in one process.
    """
    options = options or EvaluationOptions()
    is_written = task.eval_type == "generative"
    max_tokens = max_prompt_tokens(model.config, options.max_new_tokens) if is_written else model.config.max_position_embeddings
    batches = batch_problems(render_problems(task, tokenizer, max_tokens, options.max_problems), options.batch_size)
    state = PartialState()
    results = []
    with _evaluating(model):
        for number in range(state.process_index, len(batches), state.num_processes):
            results += _answer(model, tokenizer, task, batches[number], options, number)
    return summarize(name, gather_object(results))


def summarize(name: str, results: list[ProblemResult]) -> TaskReport:
    """Count the verdicts."""
    results = sorted(results, key=lambda result: result.index)
    num_correct = sum(any(result.correct) for result in results)
    return TaskReport(
        task=name,
        accuracy=num_correct / len(results) if results else 0.0,
        interval=wilson_interval(num_correct, len(results)),
        num_problems=len(results),
        num_correct=num_correct,
        num_truncated=sum(result.truncated for result in results),
        pass_at=_pass_at(results),
        problems=results,
    )


def _answer(
    model: PreTrainedModel, tokenizer: GPTTokenizer, task: Task, batch: list[Problem], options: EvaluationOptions, number: int
) -> list[ProblemResult]:
    if task.eval_type == "categorical":
        return choose_letters(model, tokenizer, task, batch)
    return write_answers(
        model,
        tokenizer,
        task,
        batch,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        num_samples=options.num_samples,
        seed=options.seed + number,
    )


def _pass_at(results: list[ProblemResult]) -> dict[int, float]:
    num_samples = len(results[0].correct) if results else 0
    powers = [2**exponent for exponent in range(num_samples.bit_length())]
    return {k: sum(pass_at_k(num_samples, sum(result.correct), k) for result in results) / len(results) for k in powers}


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
