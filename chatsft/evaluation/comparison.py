"""The same problems, two models: what an evaluation gains over an earlier one."""

import json
from dataclasses import dataclass
from pathlib import Path

from chatsft.evaluation.metrics import load_metric
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.task_evaluation import TaskReport

Earlier = dict[str, dict[int, ProblemResult]]
"""The results of an earlier evaluation, by task and problem."""


@dataclass(frozen=True)
class Difference:
    """How two models differ on the problems that both were given.

    Args:
        difference: accuracy now minus accuracy then, on these problems.
        interval: its 95 % interval (Newcombe 1998, method 10).
        p_value: of McNemar's exact test.
        num_better, num_worse: problems solved only now, or only then.
    """

    task: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    num_better: int
    num_worse: int
    num_problems: int


def load_earlier(path: Path, tasks: list[str]) -> Earlier:
    """Read what `chatsft.eval --output` wrote.

    Raises:
        ValueError: where it is no such file, or has none of the tasks.
    """
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        earlier = {task: {problem["index"]: ProblemResult(**problem) for problem in report["problems"]} for task, report in written.items()}
    except FileNotFoundError:
        raise ValueError(f"--baseline: {path} is not there. Name a file that chatsft.eval --output wrote.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--baseline: {path} was not written by chatsft.eval --output ({type(error).__name__}: {error}).") from error
    if not earlier.keys() & set(tasks):
        raise ValueError(f"--baseline: {path} has {', '.join(earlier) or 'no task'}, and none of {', '.join(tasks)}.")
    return earlier


def compare_reports(reports: list[TaskReport], earlier: Earlier) -> list[Difference]:
    """Compare task by task, on the problems that both evaluations have.

    Raises:
        ValueError: where a problem of the same number is another one.
    """
    return [compare_task(report, earlier[report.task]) for report in reports if report.task in earlier]


def compare_task(report: TaskReport, earlier: dict[int, ProblemResult]) -> Difference:
    pairs = [(problem, earlier[problem.index]) for problem in report.problems if problem.index in earlier]
    for now, then in pairs:
        is_cut = now.truncated or then.truncated
        if now.expected != then.expected or (now.prompt != then.prompt and not is_cut):
            raise ValueError(
                f"--baseline: problem {now.index} of {report.task} was another one in the earlier evaluation. "
                "Evaluate both models on the same data."
            )
    now, then = ([any(problem.correct) for problem in side] for side in zip(*pairs, strict=True)) if pairs else ([], [])
    return Difference(task=report.task, **load_metric("paired_difference").compute(predictions1=now, predictions2=then))
