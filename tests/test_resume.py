"""A run killed at any moment goes on as if nothing had happened, and a full disk does not end it."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import TrainerCallback

from chatsft.arguments import DataArguments
from chatsft.batches import data_fingerprint
from chatsft.checkpoints import CheckpointError, find_damage, list_checkpoints
from chatsft.trainer import ChatTrainer
from tests.interrupted import finish, start
from tests.kill_test import compare
from tests.tiny_training import build_rows, build_trainer, everything_that_an_update_changes, losses

CLOCK = {"tokens_per_second", "memory_gib", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}


class Counted(list):
    """Rows that count how many of them are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def history(trainer: ChatTrainer) -> list[dict]:
    return [{name: value for name, value in log.items() if name not in CLOCK} for log in trainer.state.log_history]


def equal(a: ChatTrainer, b: ChatTrainer) -> bool:
    pairs = zip(everything_that_an_update_changes(a), everything_that_an_update_changes(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The output of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    assert finish(start(folder)) == 0
    return folder


@pytest.mark.parametrize(
    "moment",
    [
        ("chatsft.guarded_trainer.GuardedTrainer.training_step", 9),  # in the middle of a step
        ("torch.save", 8),  # a checkpoint without its optimizer
        ("chatsft.checkpoints.move_away", 4),  # a checkpoint whole but for its name
        pytest.param(("chatsft.checkpoints._sync", 25), marks=pytest.mark.slow),
        pytest.param(("pathlib.Path.rename", 4), marks=pytest.mark.slow),
        pytest.param(("shutil.rmtree", 7), marks=pytest.mark.slow),  # in the middle of rotation
        pytest.param(("transformers.modeling_utils.safe_save_file", 3), marks=pytest.mark.slow),
    ],
    ids=lambda moment: moment[0].rpartition(".")[2],
)
def test_a_run_killed_at_a_bad_moment_goes_on(straight, tmp_path, moment):
    killed = start(tmp_path / "out", "resume_from_checkpoint=true", moment=moment)
    assert finish(killed) == -signal.SIGKILL
    assert all(find_damage(checkpoint) is None for checkpoint in list_checkpoints(tmp_path / "out"))
    assert finish(start(tmp_path / "out", "resume_from_checkpoint=true")) == 0
    compare(straight, tmp_path / "out")


def test_sigterm_saves_and_exits_cleanly(straight, tmp_path):
    stopped = start(
        tmp_path / "out", "save_strategy=no", moment=("chatsft.guarded_trainer.GuardedTrainer.training_step", 9, signal.SIGTERM)
    )
    assert finish(stopped) == 0
    [checkpoint] = list_checkpoints(tmp_path / "out")
    assert find_damage(checkpoint) is None
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert finish(start(tmp_path / "out", "save_strategy=no", "resume_from_checkpoint=true")) == 0
    compare(straight, tmp_path / "out")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing():
    finished = subprocess.run([sys.executable, "-m", "tests.kill_test", "--kills", "20"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "every run ended with the losses, the log and the weights of one nobody killed" in finished.stdout


@pytest.mark.parametrize("generation", [2025, 2026])
def test_a_run_resumed_between_two_logs_logs_what_it_would_have(tmp_path, generation):
    options = {"logging_steps": 3, "max_steps": 9, "generation": generation}
    whole = build_trainer(tmp_path / "whole", build_rows(36), **options)
    whole.train()
    options |= {"save_strategy": "steps", "save_steps": 4}
    build_trainer(tmp_path / "cut", build_rows(36), **options).train()
    rows = Counted(build_rows(36))
    resumed = build_trainer(tmp_path / "cut", rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert history(resumed) == history(whole)
    assert equal(resumed, whole)
    assert rows.reads == 4 * 5


def test_a_finished_run_makes_no_further_step(tmp_path):
    build_trainer(tmp_path, build_rows(60), save_strategy="steps", save_steps=3).train()
    again = build_trainer(tmp_path, build_rows(60), save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert len(losses(again)) == 6


def test_a_checkpoint_of_other_data_is_not_resumed_from(tmp_path):
    first = build_trainer(tmp_path, build_rows(24), save_strategy="steps", save_steps=3)
    first.data_fingerprint = "these rows"
    first.train()
    second = build_trainer(tmp_path, build_rows(24))
    second.data_fingerprint = "other rows"
    with pytest.raises(CheckpointError, match="checkpoint-6 was trained on other data"):
        second.train(resume_from_checkpoint=True)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on(tmp_path, caplog):
    class Trainer(ChatTrainer):
        def _save_checkpoint(self, model, trial):
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if self.state.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # writing beyond it fails as on a full disk
            try:
                super()._save_checkpoint(model, trial)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    trainer = build_trainer(tmp_path, build_rows(24), trainer_class=Trainer, save_strategy="steps", save_steps=2, save_total_limit=1)
    trainer.train()
    assert len(losses(trainer)) == 6
    assert [log["step"] for log in trainer.state.log_history if "unsaved_checkpoint" in log] == [4]
    assert "checkpoint-4 could not be written" in caplog.text
    assert "its last checkpoint is checkpoint-2" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-6"]
    assert find_damage(tmp_path / "checkpoint-6") is None


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2}
    best_of = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}  # the highest, so an early one
    trainer = build_trainer(tmp_path, build_rows(24), eval_rows=build_rows(4), **options, **best_of)
    trainer.train()
    validation = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == max(validation)
    best = validation.index(max(validation)) + 1
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{best}", "checkpoint-6"}
    assert trainer.evaluate()["eval_loss"] == max(validation)


def test_a_run_told_to_end_saves_once_and_validates_no_more(tmp_path, monkeypatch):
    done = []
    for name in ("_save_checkpoint", "evaluate"):
        monkeypatch.setattr(ChatTrainer, name, lambda self, *args, name=name, **kwargs: done.append((name, self.state.global_step)) or {})
    trainer = build_trainer(tmp_path, build_rows(48), eval_rows=build_rows(4), eval_strategy="epoch", save_strategy="epoch", max_steps=24)
    trainer.add_callback(TerminatedAfter(3))
    trainer.train()
    assert done == [("_save_checkpoint", 3)]


class TerminatedAfter(TrainerCallback):
    """Send SIGTERM before a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_place_in_the_data_depends_on_the_seed_where_rows_are_shuffled():
    rendered = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    by_tokens, by_count = (DataArguments(train_mixture=[], **{key: 64}) for key in ("total_batch_size", "target_examples_per_step"))
    assert data_fingerprint(rendered, by_tokens, 1) != data_fingerprint(rendered, by_tokens, 2)
    assert data_fingerprint(rendered, by_count, 1) == data_fingerprint(rendered, by_count, 2)


def test_sigterm_is_noticed_only_inside_a_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = build_trainer(tmp_path, build_rows(24))
    with trainer.stop_signal:
        os.kill(os.getpid(), signal.SIGTERM)
    assert trainer.stop_signal.is_received
    assert signal.getsignal(signal.SIGTERM) is before
