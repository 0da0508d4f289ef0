"""The quickstart as shipped: its recipe and data are sound, and its training does what `make quickstart` promises."""

import json
from pathlib import Path

import pytest

from chatsft.batches import load_rendered
from chatsft.eval import main as evaluate
from chatsft.model.loading import load_model_and_tokenizer
from chatsft.recipe import load_recipe
from chatsft.tasks import create_task
from chatsft.train import train

ROOT = Path(__file__).parent.parent
RECIPE = Path("recipes/quickstart.yaml")
DATA = Path("recipes/quickstart")
NUM_PROBLEMS = 200


@pytest.fixture(autouse=True)
def repository_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def tokenizer():
    return load_model_and_tokenizer(str(ROOT / DATA))[1]


@pytest.mark.parametrize("key", ["train_mixture", "eval_mixture"])
def test_mixture_renders_uncut_with_every_source_in_it(key, tokenizer):
    recipe = load_recipe(RECIPE)
    rendered = load_rendered(key, getattr(recipe.data, key), recipe, tokenizer)
    assert set(rendered["source"]) == {"Arithmetic", "SimpleSpelling", "conversations.jsonl"}
    assert {ids[-1] for ids in rendered["input_ids"]} == {tokenizer.convert_tokens_to_ids("<|assistant_end|>")}
    assert max(map(len, rendered["input_ids"])) < recipe.data.max_length


def test_entries_take_all_conversations_between_them_and_share_none():
    recipe = load_recipe(RECIPE)
    conversations = [json.loads(line) for line in (DATA / "conversations.jsonl").read_text().splitlines()]
    train_entry, eval_entry = recipe.data.train_mixture[-1], recipe.data.eval_mixture[-1]
    assert train_entry["stop"] == eval_entry["start"] < len(conversations)
    questions = [conversation["messages"][0]["content"] for conversation in conversations if len(conversation["messages"]) == 2]
    assert len(set(questions)) == len(questions)


def test_validation_sums_are_not_those_the_accuracy_is_measured_on():
    entry = load_recipe(RECIPE).data.eval_mixture[0]
    assert entry["task"] == "Arithmetic"
    assert entry["start"] >= NUM_PROBLEMS


def test_words_are_plain_and_listed_once():
    words = (DATA / "words" / "words_alpha.txt").read_text().splitlines()
    assert words == sorted(set(words))
    assert all(word.isascii() and word.islower() and 3 <= len(word) <= 9 for word in words)


def accuracy(checkpoint: Path, output: Path) -> dict:
    """Return the report of the evaluation that `make quickstart` runs."""
    limits = ["--max_problems", str(NUM_PROBLEMS), "--max_new_tokens", "48", "--batch_size", "200"]
    assert evaluate([str(checkpoint), "--tasks", "Arithmetic", "--output", str(output), *limits]) == 0
    return json.loads(output.read_text())["tasks"]["Arithmetic"]


@pytest.mark.slow
def test_training_teaches_the_base_model_to_calculate_with_the_tool(tmp_path):
    trainer = train(load_recipe(RECIPE, [f"output_dir={tmp_path / 'model'}"]))
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 2
    assert losses[1] < losses[0] / 4

    before, after = accuracy(DATA, tmp_path / "before.json"), accuracy(tmp_path / "model", tmp_path / "after.json")
    assert before["num_problems"] == after["num_problems"] == NUM_PROBLEMS
    assert before["accuracy"] == 0
    assert after["accuracy"] >= 0.95
    assert_right_answers_come_from_the_calculator(after["problems"])


def assert_right_answers_come_from_the_calculator(problems: list[dict]) -> None:
    task = create_task("Arithmetic", split="test")
    for problem in problems:
        if problem["correct"] == [True]:
            python, output = task[problem["index"]]["messages"][1]["content"][1:3]
            call = f"<|python_start|>{python['text']}<|python_end|><|output_start|>{output['text']}<|output_end|>"
            assert call in problem["completions"][0]
