"""A run says how it goes: figures for every logger, and warnings with a remedy."""

import json
import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState

from chatsft.callbacks import log_line
from chatsft.health_warnings import HealthWarnings, supervised_share
from tests.tiny_training import FaultyTrainer, build_rows, build_trainer

FIGURES = {
    *("loss", "learning_rate", "lr_multiplier", "tokens_per_second", "supervised_tokens", "skipped_steps", "memory_gib", "epoch"),
    *("grad_norm_embedding", "grad_norm_unembedding", "grad_norm_matrices", "lr_embedding", "lr_unembedding", "lr_matrices"),
}


def warn(*logs: dict, caplog) -> str:
    """Let the warnings see logs one after the other, and return what they say."""
    callback, state = HealthWarnings(), TrainerState(is_world_process_zero=True)
    for step, log in enumerate(logs, 1):
        state.log_history.append({**log, "step": step})
        if "eval_loss" in log:
            callback.on_evaluate(None, state, TrainerControl())
        else:
            callback.on_log(None, state, TrainerControl(), logs=log)
    return caplog.text


def test_every_log_has_every_figure_as_a_number(tmp_path):
    trainer = build_trainer(tmp_path, build_rows(24))
    trainer.train()
    logs = trainer.state.log_history[:-1]
    assert len(logs) == 6
    for log in logs:
        assert set(log) >= FIGURES
        assert all(isinstance(value, int | float) for value in log.values())


def test_gradient_norms_are_those_of_each_group(tmp_path):
    norms = []

    class Trainer(FaultyTrainer):
        def _get_grad_norm(self, model, grad_norm=None):  # called once the gradients of a step are complete
            groups = self.optimizer.param_groups
            squares = {group["name"]: sum(param.grad.double().square().sum().item() for param in group["params"]) for group in groups}
            norms.append({f"grad_norm_{name}": square**0.5 for name, square in squares.items()})
            return super()._get_grad_norm(model, grad_norm)

    trainer = build_trainer(tmp_path, build_rows(24), trainer_class=Trainer, generation=2026)
    trainer.faults = {}
    trainer.train()
    logged = [{name: value for name, value in log.items() if name.startswith("grad_norm_")} for log in trainer.state.log_history[:-1]]
    assert len(logged) == 6
    assert [log == pytest.approx(norm, rel=1e-5) for log, norm in zip(logged, norms, strict=True)] == [True] * 6


def test_tensorboard_gets_the_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = build_trainer(tmp_path / "out", build_rows(24), trainer_class=FaultyTrainer, report_to="tensorboard")
    trainer.faults = {(2, 0, 0): "nan loss"}
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {f"train/{name}" for name in FIGURES - {"epoch"}} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("train/skipped_steps")] == [0, 0, 1, 1, 1, 1]


def test_the_console_line_counts_steps_that_were_left_out():
    figures = {"lr_multiplier": 0.5, "supervised_tokens": 10, "tokens_per_second": 2.0, "skipped_steps": 2}
    assert log_line(3, {**figures, "loss": 1.0}).endswith("| tok/s: 2 | skipped: 2")
    assert log_line(3, figures) == "Step 00002 | left out, as were all since the last line | skipped: 2"


def test_the_log_on_disk_is_valid_json_when_every_step_is_left_out(tmp_path):
    trainer = build_trainer(tmp_path, build_rows(24), trainer_class=FaultyTrainer)
    trainer.faults = {(step, 0, 0): "nan loss" for step in range(6)}
    trainer.train()
    trainer.save_state()

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "trainer_state.json").read_text(), parse_constant=refuse)


def test_steps_of_very_unequal_size_are_warned_of_once(caplog):
    logs = [{"supervised_tokens_min": tokens, "supervised_tokens_max": tokens} for tokens in (100, 10_000, 90, 11_000)]
    text = warn(*logs, caplog=caplog)
    assert text.count("supervised tokens of a step swing widely: from 100 to 10,000") == 1
    assert "packing: true and total_batch_size" in text


def test_steps_of_like_size_are_not_warned_of(caplog):
    assert warn(*({"supervised_tokens_min": 500, "supervised_tokens_max": 9000} for _ in range(3)), caplog=caplog) == ""


def test_the_last_step_of_an_epoch_may_be_small(tmp_path, caplog):
    rows = [*build_rows(4), *({"input_ids": row["input_ids"][:2], "labels": row["labels"][:2]} for row in build_rows(1))]
    trainer = build_trainer(tmp_path, rows, max_steps=2)
    trainer.add_callback(HealthWarnings)
    trainer.train()
    assert ["supervised_tokens_min" in log for log in trainer.state.log_history] == [True, False, False]


def test_overfitting_is_warned_of_with_the_step_of_the_best_model(caplog):
    losses = [(3.0, 2.9), (2.0, 2.5), (1.5, 2.6), (1.0, 2.8), (0.5, 3.0)]
    text = warn(*(log for loss, eval_loss in losses for log in ({"loss": loss}, {"eval_loss": eval_loss})), caplog=caplog)
    assert text.count("validation loss rises while training loss falls: the model overfits since step 4") == 1
    assert "load_best_model_at_end" in text


@pytest.mark.parametrize("losses", [[(3.0, 2.0), (2.5, 2.1), (2.0, 2.0), (1.5, 2.1)], [(2.0, 2.0), (2.1, 2.1), (2.2, 2.2), (2.3, 2.3)]])
def test_noise_and_a_run_that_gets_worse_in_both_are_no_overfitting(caplog, losses):
    assert warn(*(log for loss, eval_loss in losses for log in ({"loss": loss}, {"eval_loss": eval_loss})), caplog=caplog) == ""


@pytest.mark.parametrize(("trained", "is_warned"), [(2, True), (3, False)])
def test_data_that_is_mostly_not_trained_on_is_warned_of(tmp_path, caplog, trained, is_warned):
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"].copy()} for row in build_rows(300)]
    rows = [{name: values.repeat(3)[:12] for name, values in row.items()} for row in rows]
    for row in rows:
        row["labels"][:-trained] = -100
    trainer = build_trainer(tmp_path, rows, max_steps=1)
    trainer.add_callback(HealthWarnings)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert supervised_share(rows) == trained / 12
    assert ("only 17% of the training tokens are supervised" in caplog.text) is is_warned
