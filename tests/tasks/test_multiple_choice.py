"""ARC and MMLU, against recorded conversations."""

import re

import pytest

from chatsft.tasks import ARC, MMLU, render_mc
from tests.tasks.fixtures import in_file_order, load_fixture, write_lines

RECORDED = load_fixture("multiple_choice.json")


@pytest.mark.parametrize("case", RECORDED["render_mc_direct"], ids=lambda case: repr(case["question"]))
def test_questions_are_written_as_recorded(case):
    assert render_mc(case["question"], case["letters"], case["choices"]) == case["text"]


@pytest.fixture
def data_root(tmp_path):
    write_lines(tmp_path / "arc" / "ARC-Easy" / "test.jsonl", [case["row"] for case in RECORDED["arc"]])
    write_lines(tmp_path / "mmlu" / "val.jsonl", [case["row"] for case in RECORDED["mmlu"]])
    return tmp_path


def test_arc_conversations_are_the_recorded_ones(data_root):
    task = ARC(subset="ARC-Easy", split="test", data_root=data_root)
    assert in_file_order(task) == [case["conversation"] for case in RECORDED["arc"]]


def test_mmlu_conversations_are_the_recorded_ones(data_root):
    task = MMLU(subset="all", split="validation", data_root=data_root)
    assert in_file_order(task) == [case["conversation"] for case in RECORDED["mmlu"]]
    assert list(MMLU(split="val", data_root=data_root)) == list(task)


def test_letters_are_judged_as_recorded(data_root):
    conversation = RECORDED["mmlu"][0]["conversation"]
    task = MMLU(split="val", data_root=data_root)
    assert [[letter, task.evaluate(conversation, letter)] for letter, _ in RECORDED["mmlu_evaluate"]] == RECORDED["mmlu_evaluate"]
    with pytest.raises(ValueError, match="answer 'Z' is none of this question's letters"):
        task.evaluate(conversation, "Z")


def test_an_answer_outside_the_letters_is_an_error(tmp_path):
    row = {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}
    write_lines(tmp_path / "arc" / "ARC-Easy" / "test.jsonl", [row])
    with pytest.raises(ValueError, match="'Q\\?' has answer 'C'"):
        ARC("ARC-Easy", "test", data_root=tmp_path)[0]


def test_five_choices_are_no_mmlu_question(tmp_path):
    write_lines(tmp_path / "mmlu" / "dev.jsonl", [{"question": "Q?", "choices": list("abcde"), "answer": 0, "subject": "s"}])
    with pytest.raises(ValueError, match="has 5 choices, expected 4"):
        MMLU(split="dev", data_root=tmp_path)[0]


def test_the_training_questions_have_a_file_of_their_own(tmp_path):
    write_lines(tmp_path / "mmlu" / "auxiliary_train.jsonl", [RECORDED["mmlu"][0]["row"]])
    assert MMLU("auxiliary_train", "train", data_root=tmp_path)[0] == RECORDED["mmlu"][0]["conversation"]
    assert MMLU(split="auxiliary_train", data_root=tmp_path)[0] == RECORDED["mmlu"][0]["conversation"]


def test_missing_data_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "arc" / "ARC-Challenge" / "train.jsonl"))):
        ARC("ARC-Challenge", "train", data_root=tmp_path)
    path = write_lines(tmp_path / "mmlu" / "dev.jsonl", [RECORDED["mmlu"][0]["row"], {"question": "Q?", "choices": []}])
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: no column 'answer'; this line has question, choices")):
        MMLU(split="dev", data_root=tmp_path)


@pytest.mark.parametrize("subset, split", [("ARC-Medium", "test"), ("ARC-Easy", "dev")])
def test_an_unknown_subset_or_split_is_an_error(subset, split):
    with pytest.raises(ValueError, match="it is one of"):
        ARC(subset, split)
