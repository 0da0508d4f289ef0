"""Folders as runs leave them."""

import json
from pathlib import Path

from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.results import Results, save_results
from chatsft.evaluation.task_evaluation import summarize

RECIPE = "# chatsft 0.1.0\nmodel_name_or_path: base\nmatrix_lr: 0.02\nmax_steps: 4\noutput_dir: runs/a\n"
LOGS = [
    {"eval_loss": 3.0, "step": 0},
    {"loss": 2.0, "lr_multiplier": 1.0, "lr_matrices": 0.02, "supervised_tokens": 200, "tokens_per_second": 900.0, "step": 2},
    {"loss": 1.5, "lr_multiplier": 0.5, "lr_matrices": 0.01, "supervised_tokens": 300, "tokens_per_second": 1100.0, "step": 4},
    {"eval_loss": 2.0, "step": 4},
    {"train_runtime": 12.3, "train_loss": 1.75, "step": 4},
]


def write_run(folder: Path, logs: list[dict] = LOGS, recipe: str = RECIPE, step: int = 4) -> Path:
    """Write the folder of a run of four steps."""
    folder.mkdir(parents=True)
    write_state(folder, logs, step)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "environment.json").write_text(json.dumps({"python": "3.12.1", "packages": {"torch": "2.13.0"}, "gpus": []}))
    return folder


def write_state(folder: Path, logs: list[dict], step: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs, "global_step": step, "max_steps": 4}))


def write_scores(path: Path, checkpoint: str, verdicts: list[bool], task: str = "Arithmetic") -> None:
    """Write an evaluation whose problems were solved as `verdicts` say."""
    problems = [
        ProblemResult(index, f"<b>{index} + 1?", str(index + 1), [f"it is {index}"], [verdict], False)
        for index, verdict in enumerate(verdicts)
    ]
    save_results(path, Results(run={"checkpoint": checkpoint, "options": {}}, reports=[summarize(task, problems)]))
