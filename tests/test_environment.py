"""The environment of a run says what it ran on, and nothing about whose machine that is."""

import getpass
import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from chatsft.environment import describe_environment
from chatsft.recipe import load_recipe
from chatsft.train import train

ROOT = Path(__file__).parents[1]


def test_versions_and_hardware_are_there_and_names_are_not():
    environment = describe_environment(num_processes=2, attention="varlen")
    assert environment["packages"]["torch"] == version("torch")
    assert (environment["num_processes"], environment["attention"]) == (2, "varlen")
    written = json.dumps(environment)
    assert platform.node() not in written
    assert str(Path.home()) not in written and (getpass.getuser() in ("root",) or getpass.getuser() not in written)


def test_a_run_saves_its_recipe_and_environment_before_its_first_update(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    class Ended(Exception):
        pass

    def end(*args, **kwargs):
        raise Ended

    monkeypatch.setattr("chatsft.trainer.ChatTrainer.training_step", end)
    settings = ["train_mixture=[{path: quickstart/conversations.jsonl}]", "eval_mixture=null", "eval_strategy=no", "eval_on_start=false"]
    with pytest.raises(Ended):
        train(load_recipe("recipes/quickstart.yaml", [f"output_dir={tmp_path / 'run'}", "hub_token=secret", *settings]))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "environment.json"}
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "path: quickstart/conversations.jsonl" in recipe and "secret" not in recipe
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["attention"] == "sdpa"
