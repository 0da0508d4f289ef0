"""Scores of evaluations, and the same problems before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from chatsft.evaluation.comparison import Difference, compare_task
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.task_evaluation import TaskReport
from chatsft.run_report.run import Run

SAMPLES_PER_TASK = 6


@dataclass(frozen=True)
class Sample:
    """A problem, and what the model answered before and after training; before is None where only one evaluation has it."""

    task: str
    before: ProblemResult | None
    after: ProblemResult

    @property
    def is_new(self) -> bool:
        """Whether only one of the two is right."""
        return self.before is not None and any(self.before.correct) != any(self.after.correct)


def score_rows(runs: Sequence[Run]) -> list[dict]:
    """List every task of every evaluation, task by task."""
    rows = [
        {"task": report.task, "run": run.name, "file": f"{evaluation.name}.json", "report": report, "is_own": evaluation.is_own}
        for run in runs
        for evaluation in run.evaluations
        for report in evaluation.reports.values()
    ]
    return sorted(rows, key=lambda row: row["task"])


def find_pairs(run: Run) -> list[tuple[TaskReport, TaskReport]]:
    """Pair what the model scored before training with what it scores now: the last file of each kind that has the task."""
    before = {task: report for evaluation in run.evaluations if not evaluation.is_own for task, report in evaluation.reports.items()}
    after = own_reports(run)
    return [(before[task], report) for task, report in after.items() if task in before]


def own_reports(run: Run) -> dict[str, TaskReport]:
    return {task: report for evaluation in run.evaluations if evaluation.is_own for task, report in evaluation.reports.items()}


def differences(pairs: Sequence[tuple[TaskReport, TaskReport]]) -> list[Difference]:
    """Compare problem by problem; a pair whose problems are not the same is left out."""
    found = []
    for before, after in pairs:
        try:
            found.append(compare_task(after, {problem.index: problem for problem in before.problems}))
        except ValueError:
            continue
    return found


def find_samples(run: Run) -> list[Sample]:
    """Choose problems to show: of each task first those that only one of the two models solves, in the order of the task."""
    befores = {(report.task, problem.index): problem for report, _ in find_pairs(run) for problem in report.problems}
    samples = []
    for task, report in own_reports(run).items():
        shown = [Sample(task, befores.get((task, problem.index)), problem) for problem in report.problems]
        samples += sorted(shown, key=lambda sample: not sample.is_new)[:SAMPLES_PER_TASK]
    return samples
