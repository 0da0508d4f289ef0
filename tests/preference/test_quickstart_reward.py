"""The reward on the quickstart's arithmetic rises: a small run of the shipped recipe, from a model cut off early."""

from pathlib import Path

import pytest

from chatsft import grpo, train
from chatsft.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
BEGINNER = ["train_mixture=[{task: Arithmetic, split: train, size: 1280}]", "max_steps=40", "eval_strategy=no", "eval_on_start=false"]
SHORT = ["max_steps=14", "eval_steps=14", "init_lr_frac=0.1"]


@pytest.mark.slow
def test_the_reward_rises_on_sums_that_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    beginner, out = tmp_path / "beginner", tmp_path / "out"
    train.train(load_recipe(RECIPES / "quickstart.yaml", [f"output_dir={beginner}", *BEGINNER]))
    overrides = [f"model_name_or_path={beginner}", f"output_dir={out}", *SHORT]
    trainer = grpo.train(load_recipe(RECIPES / "quickstart_grpo.yaml", overrides, grpo.ARGUMENTS))
    before, after = (log["eval_reward"] for log in trainer.state.log_history if "eval_reward" in log)
    assert 0.05 < before < 0.8  # or there is nothing to learn from, or nothing left to learn
    assert after > before + 0.08
