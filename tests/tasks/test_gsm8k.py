"""GSM8K and the answer after ####, against recorded conversations and judgements."""

import pytest

from chatsft.tasks import GSM8K
from chatsft.tasks.answers import extract_answer
from tests.tasks.fixtures import in_file_order, load_fixture, write_lines

RECORDED = load_fixture("gsm8k.json")


@pytest.fixture
def task(tmp_path):
    write_lines(tmp_path / "gsm8k" / "train.jsonl", [case["row"] for case in RECORDED])
    return GSM8K(subset="main", split="train", data_root=tmp_path)


def test_conversations_are_the_recorded_ones(task):
    assert in_file_order(task) == [case["conversation"] for case in RECORDED]


def test_completions_are_judged_as_recorded(task):
    for case in RECORDED:
        for completion, right, reward in case["evaluate"]:
            assert task.evaluate(case["conversation"], completion) == right
            assert task.reward(case["conversation"], completion) == reward


@pytest.mark.parametrize("case", load_fixture("extract_answer.json"), ids=lambda case: repr(case["text"]))
def test_answers_are_found_as_recorded(case):
    assert extract_answer(case["text"]) == case["gsm8k"] == case["spellingbee"]
