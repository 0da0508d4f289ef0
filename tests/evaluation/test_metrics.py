import socket
from pathlib import Path

import evaluate
import pytest

import chatsft
from chatsft.evaluation import metrics
from chatsft.evaluation.metrics import NAMES, load_metric


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_metric.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_loads_without_a_network_and_says_what_it_takes(no_network, name):
    metric = load_metric(name)
    assert isinstance(metric, evaluate.EvaluationModule)
    assert metric.inputs_description.strip().startswith("Args:")
    assert "Returns:" in metric.inputs_description
    assert metric.description and metric.citation


def test_every_script_of_the_folder_is_a_metric():
    scripts = {path.stem for path in Path(metrics.__file__).parent.glob("*.py")} - {"__init__"}
    assert scripts == set(NAMES)
    assert Path(metrics.__file__).is_relative_to(Path(chatsft.__file__).parent)


def test_accuracy_is_any_of_n_and_pass_at_k_unbiased():
    figures = load_metric("task_accuracy").compute(predictions=[[True, False, False], [False] * 3, [True] * 3])
    assert (figures["accuracy"], figures["num_correct"], figures["num_problems"]) == (2 / 3, 2, 3)
    assert figures["pass_at"] == {1: pytest.approx((1 / 3 + 0 + 1) / 3), 2: pytest.approx((2 / 3 + 0 + 1) / 3)}
    assert figures["interval"] == pytest.approx((0.2077, 0.9385), abs=1e-4)


def test_chatcore_takes_accuracies_with_the_names_of_their_tasks():
    figures = load_metric("chatcore").compute(predictions=[0.25, 0.625, 1.0], references=["ARC-Easy", "ARC-Challenge", "MMLU"])
    assert figures == {"ChatCORE categorical": 0.5}


def test_the_difference_counts_only_what_one_of_the_two_solves():
    figures = load_metric("paired_difference").compute(
        predictions1=[True, True, True, False, False], predictions2=[True, False, False, True, False]
    )
    assert (figures["num_better"], figures["num_worse"], figures["num_problems"]) == (2, 1, 5)
    assert figures["difference"] == pytest.approx(0.2)
    assert figures["p_value"] == 1.0
    low, high = figures["interval"]
    assert low < 0.2 < high
