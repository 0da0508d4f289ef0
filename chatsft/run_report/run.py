"""What a run left in its folder: the log, the recipe, the environment, evaluations."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from chatsft.environment import ENVIRONMENT_FILE
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.task_evaluation import TaskReport
from chatsft.model_card import RECIPE_FILE

STATE_FILE = "trainer_state.json"

Points = list[tuple[int, float]]


class ReportError(ValueError):
    """A folder that no report can be made from, with what is missing."""


@dataclass(frozen=True)
class Evaluation:
    """A file that `chatsft.eval --output` wrote.

    Args:
        is_own: whether this run's model was evaluated, not the one it started from.
    """

    name: str
    checkpoint: str
    is_own: bool
    reports: dict[str, TaskReport]


@dataclass(frozen=True)
class Run:
    """A run, as far as it went.

    Args:
        logs: trainer_state.json's log_history.
        recipe: recipe.yaml as it stands there, "" where it is missing.
    """

    name: str
    folder: Path
    logs: list[dict]
    global_step: int
    max_steps: int
    recipe: str
    settings: dict
    environment: dict
    evaluations: list[Evaluation]

    @property
    def is_complete(self) -> bool:
        return self.global_step >= self.max_steps

    def points(self, key: str) -> Points:
        """Return (step, value) for every log that has the key."""
        return [(log["step"], log[key]) for log in self.logs if key in log and log[key] is not None]

    def keys(self, start: str = "", end: str = "") -> list[str]:
        """List the keys of the log that begin and end so, in the order in which they came up."""
        keys = dict.fromkeys(key for log in self.logs for key in log)
        return [key for key in keys if key.startswith(start) and key.endswith(end)]


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read the folder of a run; of one that did not end, the last checkpoint has the log.

    Raises:
        ReportError: where there is no log, or a file is damaged.
    """
    folder = Path(folder)
    state_file = find_state(folder)
    state = read_json(state_file)
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ReportError(f"{state_file} has no log_history, so Trainer did not write it. Remove it or copy it again.")
    recipe = read_text(folder / RECIPE_FILE)
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        logs=state["log_history"],
        global_step=state.get("global_step", 0),
        max_steps=state.get("max_steps", 0),
        recipe=recipe,
        settings=read_settings(recipe, folder / RECIPE_FILE),
        environment=read_json(folder / ENVIRONMENT_FILE) if (folder / ENVIRONMENT_FILE).is_file() else {},
        evaluations=read_evaluations(folder),
    )


def find_state(folder: Path) -> Path:
    """Return the file with the log of a run."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder. Name the output_dir of a run.")
    checkpoints = [path for path in folder.glob(f"checkpoint-*/{STATE_FILE}") if path.parent.name.rpartition("-")[2].isdigit()]
    checkpoints.sort(key=lambda path: int(path.parent.name.rpartition("-")[2]))
    found = [path for path in (folder / STATE_FILE, *reversed(checkpoints)) if path.is_file()]
    if not found:
        raise ReportError(
            f"{folder} holds no {STATE_FILE}. Name the output_dir of a run that has ended or saved a checkpoint (save_strategy: steps)."
        )
    return found[0]


def read_settings(recipe: str, path: Path) -> dict:
    try:
        return yaml.safe_load(recipe) or {}
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read the evaluations that lie in a run's folder: of the model before training first, then of its own."""
    evaluations = []
    for path in sorted(folder.glob("*.json")):
        written = read_json(path) if path.name not in (STATE_FILE, ENVIRONMENT_FILE) else None
        if isinstance(written, dict) and isinstance(written.get("tasks"), dict) and "checkpoint" in written:
            evaluations.append(read_evaluation(path, written, folder))
    return sorted(evaluations, key=lambda evaluation: evaluation.is_own)


def read_evaluation(path: Path, written: dict, folder: Path) -> Evaluation:
    try:
        reports = {task: read_report(report) for task, report in written["tasks"].items()}
    except (TypeError, KeyError, ValueError) as error:
        raise ReportError(f"{path} was not written by this version of chatsft.eval --output ({error}). Evaluate again.") from error
    return Evaluation(path.stem, written["checkpoint"], is_own(Path(written["checkpoint"]), folder), reports)


def is_own(checkpoint: Path, folder: Path) -> bool:
    """Tell whether a checkpoint is of the run in a folder, wherever the evaluation was started.

    >>> [is_own(Path(name), Path("/disk/runs/a")) for name in ("runs/a/checkpoint-9", "../runs/a", "recipes/a")]
    [True, True, False]
    """
    parts = [part for part in checkpoint.parts if part not in (".", "..") and not part.startswith("checkpoint-")]
    return folder.resolve().parts[-len(parts) :] == tuple(parts)


def read_report(report: dict) -> TaskReport:
    problems = [ProblemResult(**problem) for problem in report["problems"]]
    return TaskReport(**report | {"problems": problems, "interval": tuple(report["interval"])})


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read ({error}). Remove it or copy it again.") from error


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
