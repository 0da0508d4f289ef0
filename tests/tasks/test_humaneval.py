"""HumanEval's programs, against recorded ones."""

import pytest

from chatsft.tasks import HumanEval
from chatsft.tasks.humaneval import build_program, extract_imports, extract_program
from tests.tasks.fixtures import load_fixture, write_lines

RECORDED = load_fixture("humaneval.json")


@pytest.mark.parametrize("case", RECORDED["extract_program"], ids=lambda case: repr(case["text"])[:40])
def test_programs_are_found_as_recorded(case):
    assert extract_program(case["text"]) == case["program"]


@pytest.mark.parametrize("case", RECORDED["extract_imports"], ids=lambda case: repr(case["prompt"])[:40])
def test_imports_are_found_as_recorded(case):
    assert extract_imports(case["prompt"]) == case["imports"]


def test_the_conversation_is_the_recorded_one(tmp_path):
    write_lines(tmp_path / "humaneval" / "HumanEval.jsonl", [RECORDED["row"]])
    assert list(HumanEval(data_root=tmp_path)) == [RECORDED["conversation"]]


def test_the_program_of_a_right_completion_runs_and_that_of_a_wrong_one_fails():
    conversation = RECORDED["conversation"]
    exec(build_program(conversation, "```python\ndef add(a, b) -> List:\n    return a + b\n```"), {})
    with pytest.raises(AssertionError):
        exec(build_program(conversation, "def add(a, b):\n    return a - b"), {})
