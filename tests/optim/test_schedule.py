import json
from pathlib import Path

import pytest

from chatsft.optim.schedule import lr_multiplier, muon_momentum

SCHEDULES = json.loads((Path(__file__).parents[1] / "fixtures/optim/schedules.json").read_text())


@pytest.mark.parametrize("table", SCHEDULES["lr_multiplier"])
def test_multiplier_equals_nanochat_until_the_end_of_training(table):
    options = {key: table[key] for key in ("warmup_ratio", "warmdown_ratio", "final_lr_frac")}
    recorded = {progress: value for progress, value in zip(table["progress"], table["lrm"], strict=True) if progress <= 1.0}
    assert {progress: lr_multiplier(progress, **options) for progress in recorded} == pytest.approx(recorded, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("table", SCHEDULES["lr_multiplier"])
def test_multiplier_stays_at_its_last_value_past_the_end(table):
    options = {key: table[key] for key in ("warmup_ratio", "warmdown_ratio", "final_lr_frac")}
    assert min(table["lrm"]) < 0  # nanochat's own goes below zero here
    assert lr_multiplier(1.3, **options) == lr_multiplier(1.0, **options) >= 0


def test_multiplier_without_warmdown_stays_at_one():
    assert [lr_multiplier(progress, warmdown_ratio=0.0) for progress in (0.0, 0.5, 1.0, 2.0)] == [1.0] * 4


def test_defaults_are_the_linear_decay_of_2025():
    assert [lr_multiplier(i / 4) for i in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_muon_momentum_equals_nanochat():
    recorded = {int(step): value for step, value in SCHEDULES["muon_momentum"].items()}
    assert {step: muon_momentum(step) for step in recorded} == pytest.approx(recorded, rel=1e-15)


def test_muon_momentum_without_warmup_is_constant():
    assert muon_momentum(0, final=0.9, warmup_steps=0) == 0.9
