"""The host learns of a step after the device has made it or left it out: what that must not change, whenever a run logs, saves or ends."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from chatsft.checkpoints import list_checkpoints
from chatsft.faults import TrainingFault
from tests.tiny_training import (
    FaultyTrainer,
    build_rows,
    build_trainer,
    everything_that_an_update_changes,
    losses,
    skipped,
)

RARELY = {"logging_steps": 100}
SAVING = {"save_strategy": "steps", "save_steps": 1}


def build_faulty(folder: Path, faults: dict, rows: list[dict] | None = None, **settings) -> FaultyTrainer:
    trainer = build_trainer(folder, build_rows(24) if rows is None else rows, trainer_class=FaultyTrainer, **settings)
    trainer.faults = faults
    return trainer


def assert_equal(one: FaultyTrainer, other: FaultyTrainer) -> None:
    pairs = zip(everything_that_an_update_changes(one), everything_that_an_update_changes(other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def read_state(checkpoint: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((checkpoint / "trainer_state.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("generation", [2025, 2026])
def test_a_checkpoint_of_a_step_that_was_left_out_counts_it(tmp_path, generation):
    faults = {(2, 1, 0): "nan gradient", (5, 0, 0): "no memory backward"}
    whole = build_faulty(tmp_path / "whole", faults, generation=generation, **RARELY)
    whole.train()
    build_faulty(tmp_path / "cut", faults, generation=generation, **RARELY, **SAVING).train()
    for step, steps_left_out in ((2, []), (3, [3]), (6, [3, 6])):
        checkpoint = tmp_path / "cut" / f"checkpoint-{step}"
        history = read_state(checkpoint)["log_history"]
        assert [log["step"] for log in history if "skipped_step" in log] == steps_left_out
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert {group["num_steps"] for group in optimizer["param_groups"] if "num_steps" in group} == {step - len(steps_left_out)}
    resumed = build_faulty(tmp_path / "cut", faults, generation=generation, **RARELY)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert_equal(resumed, whole)
    assert [log["step"] for log in skipped(resumed)] == [3, 6]


@pytest.mark.parametrize("fault", ["nan loss", "no memory forward", "no memory midway"])
def test_the_last_and_smaller_step_of_an_epoch_is_left_out_as_any_other(tmp_path, fault):
    rows = build_rows(10)  # steps of 4, 4 and 2 rows, twice
    trainer = build_faulty(tmp_path, {(2, 0, 0): fault}, rows, **RARELY)
    trainer.train()
    assert [(log["step"], log["rows"]) for log in skipped(trainer)] == [(3, [8, 9])]
    reference = build_faulty(tmp_path, {}, rows[:8] + rows, max_steps=5, skipped_updates=(2,), **RARELY)
    reference.train()
    assert_equal(trainer, reference)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_the_log_stays_valid_json_whatever_is_clipped(tmp_path, max_grad_norm):
    trainer = build_faulty(tmp_path, {(1, 0, 0): "nan gradient"}, max_grad_norm=max_grad_norm, **SAVING)
    trainer.train()
    history = read_state(tmp_path / "checkpoint-6")["log_history"]
    assert sum("loss" in log for log in history) == 5


class Told(TrainerCallback):
    """Send SIGTERM at the beginning of a step, or fail there."""

    def __init__(self, step: int, error: Exception | None = None):
        self.step, self.error = step, error

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step and self.error is not None:
            raise self.error
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_run_ended_by_sigterm_goes_on_in_the_same_process(tmp_path, logging_steps):
    whole = build_faulty(tmp_path / "whole", {}, logging_steps=logging_steps)
    whole.train()
    trainer = build_faulty(tmp_path / "cut", {}, logging_steps=logging_steps)
    trainer.add_callback(callback := Told(2))
    trainer.train()
    assert (trainer.ending, trainer.state.global_step) == ("SIGTERM", 3 if logging_steps == 1 else 4)
    trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.ending, trainer.state.global_step) == (None, 6)
    assert losses(trainer) == losses(whole)
    assert_equal(trainer, whole)


def test_a_run_after_one_that_failed_knows_nothing_of_it(tmp_path):
    trainer = build_faulty(tmp_path / "out", {(1, 0, 0): "nan loss"}, **RARELY)
    trainer.add_callback(callback := Told(2, ValueError("a callback failed")))
    with pytest.raises(ValueError, match="a callback failed"):
        trainer.train()
    trainer.remove_callback(callback)
    trainer.faults = {}
    trainer.args.logging_steps = 1
    trainer.train()
    assert skipped(trainer) == []
    assert {log["skipped_steps"] for log in trainer.state.log_history if "skipped_steps" in log} == {0}
    first = next(log for log in trainer.state.log_history if "loss" in log)
    assert first["tokens"] == sum(len(row["input_ids"]) for row in build_rows(4))
    assert {group["num_steps"] for group in trainer.optimizer.param_groups if "num_steps" in group} == {1 + 6}  # not that with the NaN


def test_steps_left_out_in_a_row_are_counted_across_a_resume(tmp_path):
    faults = {(step, 0, 0): "nan loss" for step in (2, 3, 4)}
    options = {"max_steps": 8, "max_skipped_in_a_row": 2}
    build_faulty(tmp_path, {**faults, (4, 0, 0): "nan loss"}, build_rows(32), **{**options, "max_steps": 4}, **SAVING).train()
    resumed = build_faulty(tmp_path, faults, build_rows(32), **options)
    with pytest.raises(TrainingFault, match="3 steps in a row"):
        resumed.train(resume_from_checkpoint=True)
    assert list_checkpoints(tmp_path)[0].name == "checkpoint-5"
    further = build_faulty(tmp_path, {(5, 0, 0): "nan loss"}, build_rows(32), **options)
    further.train(resume_from_checkpoint=True)  # whoever goes on all the same gets as many again
    assert further.state.global_step == 8


class Metrics(TrainerCallback):
    """Log something at the beginning of a step, as the scores of tasks are."""

    def __init__(self, trainer: FaultyTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.log({"arc_easy_acc": 0.5})


def test_the_log_is_in_the_order_of_steps(tmp_path):
    trainer = build_faulty(tmp_path, {(1, 0, 0): "nan loss"}, **RARELY)
    trainer.add_callback(Metrics(trainer))
    trainer.train()
    steps = [(log["step"], "skipped_step" in log) for log in trainer.state.log_history if "arc_easy_acc" in log or "skipped_step" in log]
    assert steps == [(0, False), (1, False), (2, True), (2, False), (3, False), (4, False), (5, False)]


def test_with_scaled_gradients_steps_that_overflow_are_left_to_the_scaler(tmp_path):
    trainer = build_faulty(tmp_path, {(2, 1, 0): "nan gradient"}, generation=2026, **SAVING)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.guard.can_drop = False
    trainer.train()
    assert skipped(trainer) == []
    assert trainer.optimizer.optimizer.found_inf == 0
    assert {group["num_steps"] for group in trainer.optimizer.param_groups if "num_steps" in group} == {5}
    assert all(torch.isfinite(tensor).all() for tensor in everything_that_an_update_changes(trainer))
    logs = read_state(tmp_path / "checkpoint-6")["log_history"]
    assert [round(6 * log["lr_multiplier"]) for log in logs] == [6, 5, 5, 4, 3, 2]  # the schedule waits too
    assert ["grad_norm_matrices" in log for log in logs] == [True, True, False, True, True, True]
