"""Arithmetic: right, copyable, and never tested on a trained pair."""

import re

import pytest

from chatsft.tasks import Arithmetic
from chatsft.tasks.arithmetic import is_test_pair

EXPRESSION = re.compile(r"(\d+) ([-+*]) (\d+)")


def operands(conversation) -> tuple[int, int]:
    a, _, b = EXPRESSION.search(conversation["messages"][0]["content"]).groups()
    return tuple(sorted((int(a), int(b))))


def test_a_row_is_a_question_a_calculation_and_an_answer():
    assert Arithmetic(size=1)[0] == {
        "messages": [
            {"role": "user", "content": "Compute 97 - 5"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me calculate: "},
                    {"type": "python", "text": "97 - 5"},
                    {"type": "python_output", "text": "92"},
                    {"type": "text", "text": "\n#### 92"},
                ],
            },
        ]
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_right_and_only_copies(split):
    task = Arithmetic(size=500, split=split)
    for conversation in task:
        question, parts = (message["content"] for message in conversation["messages"])
        expression, output, final = (part["text"] for part in parts[1:])
        assert expression in question
        assert output == str(eval(expression)) and int(output) >= 0
        assert final == f"\n#### {output}"
        assert task.evaluate(conversation, final) == 1
        assert task.evaluate(conversation, f"#### {int(output) + 1}") == 0 == task.evaluate(conversation, "")


def test_all_three_operations_and_both_orders_occur():
    expressions = [EXPRESSION.search(row["messages"][0]["content"]).groups() for row in Arithmetic(size=200)]
    assert {sign for _, sign, _ in expressions} == {"+", "-", "*"}
    assert {int(a) < int(b) for a, sign, b in expressions if sign == "*"} == {True, False}


def test_no_pair_of_operands_is_in_both_splits():
    trained = {operands(row) for row in Arithmetic(size=5000, split="train")}
    tested = {operands(row) for row in Arithmetic(size=500, split="test")}
    assert not trained & tested
    assert not any(is_test_pair(*pair) for pair in trained) and all(is_test_pair(b, a) for a, b in tested)


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'validation'; it is one of train, test"):
        Arithmetic(split="validation")
