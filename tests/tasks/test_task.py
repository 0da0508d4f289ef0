"""Views on a task, against nanochat's recorded slices."""

import re

import pytest

from chatsft.tasks import Task
from tests.tasks.fixtures import load_fixture

RECORDED = load_fixture("mixture.json")


class Numbers(Task):
    def __init__(self, count=20, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def num_examples(self):
        return self.count

    def get_example(self, index):
        return f"x{index}"


@pytest.mark.parametrize("case", RECORDED["slicing"][:-1], ids=lambda case: str(case["kwargs"]))
def test_a_view_holds_the_recorded_examples(case):
    task = Numbers(case["n_underlying"], **case["kwargs"])
    assert len(task) == case["len"]
    assert [task[index] for index in range(len(task))] == case["items"]
    assert list(task) == case["items"]


def test_a_stop_beyond_the_data_means_to_the_end():
    recorded = RECORDED["slicing"][-1]
    assert recorded["kwargs"] == {"stop": 100} and recorded["len"] == 100  # what nanochat reports for 20 examples
    assert list(Numbers(20, stop=100)) == recorded["items"][:-1]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"start": -1}, "start is -1"),
        ({"start": 5, "stop": 4}, "stop is 4, before start 5"),
        ({"step": 0}, "step is 0"),
    ],
)
def test_a_bad_view_is_an_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Numbers(**kwargs)


def test_a_start_beyond_the_data_is_an_error():
    with pytest.raises(ValueError, match=re.escape("Numbers starts at 23 but has 20 examples")):
        len(Numbers(start=23))


@pytest.mark.parametrize("index", [-1, 5, 100])
def test_an_index_outside_the_view_is_an_error(index):
    with pytest.raises(IndexError, match="has 5 examples here"):
        Numbers(20, stop=5)[index]


def test_a_task_without_a_judge_says_so():
    with pytest.raises(NotImplementedError, match="Numbers lacks evaluate"):
        Numbers().evaluate({}, "")
    with pytest.raises(NotImplementedError, match="it can be trained on but not evaluated"):
        _ = Numbers().eval_type
