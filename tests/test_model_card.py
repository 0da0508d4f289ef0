"""The card says what was done, in the metadata format of the Hub, and new results take the place of old ones."""

import shutil
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard

from chatsft.curves import draw_curves
from chatsft.eval import main as evaluate
from chatsft.model_card import DATASETS, add_results, save_model_card, training_results
from chatsft.recipe import load_recipe
from chatsft.tasks.registry import TASKS

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
LOGS = [
    {"eval_loss": 3.0, "eval_runtime": 1.0, "step": 0},
    {"loss": 2.5, "step": 1},
    {"loss": 1.5, "step": 2},
    {"eval_loss": 1.25, "eval_token_loss": 1.125, "eval_GSM8K_accuracy": 0.5, "eval_runtime": 1.0, "step": 2},
]
ROWS = Counter({"GSM8K": 7473, "Arithmetic": 20, "mine.jsonl": 3, "some/dataset": 5})


@pytest.fixture
def card(tmp_path) -> ModelCard:
    save_model_card(tmp_path, load_recipe(RECIPE, ["hub_token=secret", "matrix_lr=0.5"]), ROWS, LOGS, "someone/sums")
    return ModelCard.load(tmp_path / "README.md")


def test_metadata_is_what_the_hub_reads(card):
    assert card.data.model_name == "sums"
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a local folder, which a link would not find
    assert card.data.datasets == ["openai/gsm8k", "some/dataset"]
    results = {(result.dataset_name, result.metric_type): (result.dataset_type, result.metric_value) for result in card.data.eval_results}
    assert results == {
        ("validation mixture", "loss"): ("validation-mixture", 1.25),
        ("validation mixture", "token_loss"): ("validation-mixture", 1.125),
        ("GSM8K", "accuracy"): ("openai/gsm8k", 0.5),
    }


def test_a_base_on_the_hub_is_linked(tmp_path):
    save_model_card(tmp_path, load_recipe(RECIPE, ["model_name_or_path=someone/base"]), ROWS, LOGS, "x")
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "someone/base"


def test_the_mixture_is_listed_with_rows_and_licences(card):
    for row in ("| GSM8K | 7,473 | MIT |", "| mine.jsonl | 3 | see the source |", "| Arithmetic | 20 | made by chatsft (MIT) |"):
        assert row in card.text


def test_the_recipe_is_complete_and_without_secrets(card, tmp_path):
    settings = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert settings == {**yaml.safe_load(RECIPE.read_text()), "matrix_lr": 0.5}
    assert "| `matrix_lr` | `0.5` |" in card.text
    assert not [path for path in tmp_path.iterdir() if "secret" in path.read_text()]


def test_every_task_has_its_dataset_and_licence():
    assert DATASETS.keys() >= TASKS.keys() - {"CustomJSON"}


def test_accuracies_take_the_place_of_older_ones(card, tmp_path):
    add_results(tmp_path, {"GSM8K": 0.75, "ARC-Easy": 0.25})
    updated = ModelCard.load(tmp_path / "README.md")
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in updated.data.eval_results}
    assert results[("GSM8K", "accuracy")] == 0.75
    assert results[("ARC-Easy", "accuracy")] == 0.25
    assert results[("validation mixture", "loss")] == 1.25
    assert "| GSM8K | accuracy | 0.7500 |" in updated.text
    assert "0.5000" not in updated.text
    for part in ("# sums", "## Data", "## Use", "trust_remote_code=True"):
        assert updated.text.count(part) == card.text.count(part)
    add_results(tmp_path, {"GSM8K": 0.75, "ARC-Easy": 0.25})
    assert ModelCard.load(tmp_path / "README.md").content == updated.content


def test_an_evaluation_updates_the_card_if_asked(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(RECIPE.parent / "quickstart", model)
    save_model_card(model, load_recipe(RECIPE), ROWS, LOGS, "x")
    options = ["--tasks", "Arithmetic", "--max_problems", "2", "--max_new_tokens", "2", "--update_card"]
    assert evaluate([str(model), *options]) == 0
    results = ModelCard.load(model / "README.md").data.eval_results
    assert [result.metric_value for result in results if result.dataset_name == "Arithmetic"] == [0.0]
    with pytest.raises(SystemExit):
        evaluate([str(tmp_path), *options])


def test_results_need_a_card(tmp_path):
    with pytest.raises(ValueError, match="holds no model card"):
        add_results(tmp_path, {"GSM8K": 0.5})


def test_without_evaluation_there_are_no_results(tmp_path):
    save_model_card(tmp_path, load_recipe(RECIPE), ROWS, [{"loss": 1.0, "step": 1}], "x", ships_code=False)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert "Nothing was evaluated." in card.text
    assert "trust_remote_code" not in card.text
    assert training_results([]) == []


def test_task_metrics_of_training_are_results_of_their_own():
    logs = [{"arc_easy_acc": 0.25, "step": 0}, {"arc_easy_acc": 0.5, "my_tasks_capitals_acc": 1.0, "step": 9}]
    [result] = training_results(logs)
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("ARC-Easy", "accuracy_during_training", 0.5)


def test_curves_lie_within_the_picture_in_proportion():
    picture = ElementTree.fromstring(draw_curves({"a": [(0, 4.0), (10, 2.0), (20, 0.0)], "b": [(20, 1.0)], "absent": []}))
    lines = picture.findall("{*}polyline")
    places = [tuple(map(float, place.split(","))) for place in lines[0].get("points").split()]
    assert len(lines) == 2
    assert places[0][0] < places[1][0] < places[2][0]
    assert places[0][1] < places[1][1] < places[2][1]  # y grows downward
    assert places[1] == tuple((first + last) / 2 for first, last in zip(places[0], places[2], strict=True))
    assert "absent" not in ElementTree.tostring(picture, encoding="unicode")
    assert draw_curves({"flat": [(1, 2.0)]}).count("<polyline") == 1
    assert ElementTree.fromstring(draw_curves({})).findall("{*}polyline") == []
