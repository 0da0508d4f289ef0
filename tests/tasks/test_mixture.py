"""The order of mixtures, against nanochat's recorded ones."""

import pytest

from chatsft.tasks import SimpleSpelling, SpellingBee, TaskMixture, TaskSequence, mixture_order
from tests.tasks.fixtures import load_fixture, write_words
from tests.tasks.test_task import Numbers

RECORDED = load_fixture("mixture.json")


@pytest.mark.parametrize("case", RECORDED["mixtures"], ids=lambda case: str(case["lengths"]))
def test_shuffled_order_is_the_recorded_one(case):
    expected = [tuple(pair) for pair in case["index_map"]]
    assert mixture_order(case["lengths"]) == expected
    assert TaskMixture([Numbers(length) for length in case["lengths"]]).index_map == expected


def test_sequence_serves_one_task_after_the_other():
    assert list(TaskSequence([Numbers(2), Numbers(0), Numbers(1)])) == ["x0", "x1", "x0"]
    assert TaskSequence([Numbers(2), Numbers(1)], start=1)[1] == "x0"


def test_a_view_on_a_mixture_is_the_recorded_one():
    whole = TaskMixture([Numbers(15), Numbers(8)])
    part = TaskMixture([Numbers(15), Numbers(8)], start=2, stop=15, step=2)
    assert len(part) == RECORDED["mixture_with_slice_start2_stop15_step2"]["len"]
    assert list(part) == [whole[index] for index in range(2, 15, 2)]


def test_an_unknown_order_is_an_error():
    with pytest.raises(ValueError, match="'random'; it is 'shuffled' or 'sequence'"):
        mixture_order([1], "random")


def test_a_recorded_training_run_had_this_order_and_these_spelling_rows(tmp_path):
    recorded = load_fixture("train_order.json")
    order = mixture_order(recorded["lengths"])
    assert [list(pair) for pair in order[: len(recorded["pairs"])]] == recorded["pairs"]
    data_root = write_words(tmp_path)
    tasks = {5: SimpleSpelling(60, "train", data_root=data_root), 6: SpellingBee(60, "train", data_root=data_root)}
    assert len(recorded["spelling"]) == 8
    for entry, index, messages in recorded["spelling"]:
        assert tasks[entry][index]["messages"] == messages
