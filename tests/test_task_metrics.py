"""Task metrics during training: when, how they are written down, and that training does not notice."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chatsft import eval as evaluation_program
from chatsft.data.mixture import load_mixture
from chatsft.evaluation import evaluate_conversations
from chatsft.recipe import load_recipe
from chatsft.tasks import Task
from chatsft.train import main, train
from chatsft.trainer import ChatTrainer
from tests.evaluation.recorded_model import RECORDED

REPOSITORY = Path(__file__).parents[1]
PARITY = REPOSITORY / "recipes" / "parity.yaml"
QUIET = ("eval_strategy=no", "eval_on_start=false")
CARELESS = "tests.test_task_metrics:Careless"


class Careless(Task):
    """A task that draws from every random state there is, as a user's may."""

    eval_type = "generative"

    def num_examples(self) -> int:
        return 3

    def get_example(self, index: int) -> dict:
        random.seed(index)
        return {"messages": [{"role": "user", "content": "a" * (index + 1)}, {"role": "assistant", "content": "b"}]}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        torch.manual_seed(1)
        np.random.seed(1)
        return random.random() + torch.rand(()) + np.random.rand() > 1.5


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in {"arc/ARC-Easy": RECORDED["arc"]["rows"], "mmlu": RECORDED["mmlu"]["rows"]}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(output: Path, *overrides: str):
    return train(load_recipe(PARITY, [f"output_dir={output}", *overrides]))


def losses(trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def scores(trainer) -> list[dict]:
    return [log for log in trainer.state.log_history if any(name.endswith("_acc") for name in log)]


@pytest.fixture
def noisy_training(monkeypatch) -> None:
    """Let training draw from every random state: a model without dropout would not show that one has moved."""
    plain = ChatTrainer.training_step

    def noisy(self, model, *args, **kwargs):
        loss = plain(self, model, *args, **kwargs)
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        next(model.parameters()).grad.add_(1e-3 * noise)
        return loss

    monkeypatch.setattr(ChatTrainer, "training_step", noisy)


def test_training_with_and_without_evaluation_is_the_same(tmp_path, data_root, noisy_training):
    options = (*QUIET, "max_steps=3", f"data_root={data_root}")
    without = run(tmp_path / "1", *options)
    with_metrics = run(tmp_path / "2", *options, f"eval_tasks=[ARC-Easy, '{CARELESS}']", "eval_metrics_every=2", "eval_max_problems=2")
    assert len(scores(with_metrics)) == 3
    assert losses(with_metrics) == losses(without)
    weights = dict(without.model.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in with_metrics.model.named_parameters())
    assert with_metrics.model.training


def test_metrics_come_before_the_first_step_every_so_many_and_after_the_last(tmp_path, data_root, capsys):
    options = ("eval_tasks=[MMLU, ARC-Easy]", "eval_metrics_every=2", "eval_max_problems=7", f"data_root={data_root}")
    trainer = run(tmp_path / "out", *options, "max_steps=3", "eval_steps=2")
    assert [log["step"] for log in scores(trainer)] == [0, 2, 3]
    assert set(scores(trainer)[0]) == {"mmlu_acc", "arc_easy_acc", "epoch", "step"}
    assert [log["mmlu_acc"] * 7 for log in scores(trainer)] == pytest.approx([round(log["mmlu_acc"] * 7) for log in scores(trainer)])
    saved = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [log for log in saved if "mmlu_acc" in log] == scores(trainer)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step")]
    assert [(line[:10], line[13:].split(":")[0]) for line in lines] == [
        ("Step 00000", "Validation loss"),
        ("Step 00000", "mmlu_acc"),
        ("Step 00000", "Training loss"),
        ("Step 00001", "Training loss"),
        ("Step 00002", "Validation loss"),
        ("Step 00002", "mmlu_acc"),
        ("Step 00002", "Training loss"),
        ("Step 00003", "Validation loss"),
        ("Step 00003", "mmlu_acc"),
    ]
    first = scores(trainer)[0]
    assert lines[1] == f"Step 00000 | mmlu_acc: {first['mmlu_acc']:.6f}, arc_easy_acc: {first['arc_easy_acc']:.6f}"


def test_metrics_of_an_untrained_run_are_those_of_the_program(tmp_path, data_root):
    options = ("eval_tasks=[MMLU]", f"data_root={data_root}", "max_steps=-1", "num_train_epochs=0", *QUIET)
    [log] = scores(run(tmp_path / "out", *options))
    arguments = [str(tmp_path / "out"), "--tasks", "MMLU", "--data_root", str(data_root), "--output", str(tmp_path / "o.json")]
    assert evaluation_program.main(arguments) == 0
    assert json.loads((tmp_path / "o.json").read_text())["tasks"]["MMLU"]["accuracy"] == log["mmlu_acc"]


def test_problems_are_limited_by_kind(tmp_path, data_root):
    tasks = f"eval_tasks=[ARC-Easy, '{CARELESS}']"
    options = (
        tasks,
        "eval_max_problems={categorical: 5, generative: 1}",
        f"data_root={data_root}",
        "num_train_epochs=0",
        "max_steps=-1",
        *QUIET,
    )
    log = scores(run(tmp_path / "out", *options))[0]
    assert log["arc_easy_acc"] * 5 == pytest.approx(round(log["arc_easy_acc"] * 5))
    assert log["tests_test_task_metrics_careless_acc"] in (0.0, 1.0)


def test_a_resumed_run_has_the_metrics_of_one_straight_through(tmp_path, data_root):
    options = (*QUIET, "eval_tasks=[ARC-Easy]", "eval_metrics_every=2", f"data_root={data_root}", "loss_average=token", "max_steps=5")
    straight = run(tmp_path / "straight", *options)
    run(tmp_path / "cut", *options, "save_strategy=steps", "save_steps=2")
    (tmp_path / "cut" / "checkpoint-4").rename(tmp_path / "later")
    resumed = run(tmp_path / "cut", *options, f"resume_from_checkpoint={tmp_path}/cut/checkpoint-2")
    assert scores(resumed) == scores(straight)
    assert losses(resumed) == losses(straight)


def test_the_loss_on_conversations_is_the_validation_loss_of_training(tmp_path):
    conversations = load_mixture(load_recipe(PARITY).data.eval_mixture, folders=(PARITY.parent,), order="sequence")
    trainer = run(tmp_path / "out", "max_steps=-1", "num_train_epochs=0", *QUIET)
    report = evaluate_conversations(conversations["messages"], trainer.model, trainer.processing_class)
    assert report.token_loss == pytest.approx(trainer.evaluate()["eval_token_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval_tasks=[arc-easy]"], "did you mean ARC-Easy?"),
        (["eval_tasks=[SmolTalk]"], "can be trained on but not evaluated"),
        (["eval_tasks=[GSM8K]"], "gsm8k/test.jsonl is not there"),
        (["eval_tasks=MMLU"], "eval_tasks is 'MMLU', but it must be a list"),
        (["eval_tasks=[]"], "it is a list of task names"),
        (["eval_metrics_every=0"], "eval_metrics_every is 0"),
        (["eval_max_problems=0"], "eval_max_problems is 0"),
        (["eval_max_problems={generativ: 3}"], "it may be a number of at least 1, or {categorical: 1024, generative: 64}"),
    ],
)
def test_settings_that_cannot_be_evaluated_end_before_training(tmp_path, data_root, capsys, overrides, message):
    assert main([str(PARITY), f"output_dir={tmp_path}/out", f"data_root={data_root}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, data_root):
    recorded = []
    for num_processes in (1, 2):
        output = tmp_path / str(num_processes)
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes), "-m", "chatsft.train"]
        options = [str(PARITY), f"output_dir={output}", "eval_tasks=[ARC-Easy, MMLU]", f"data_root={data_root}", "max_steps=1", *QUIET]
        options += ["loss_average=token", f"per_device_train_batch_size={8 // num_processes}"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, *options], check=True, cwd=REPOSITORY, env=environment, timeout=300)
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        recorded.append([(log["mmlu_acc"], log["arc_easy_acc"]) for log in history if "mmlu_acc" in log])
    assert len(recorded[0]) == 2
    assert recorded[0] == recorded[1]
