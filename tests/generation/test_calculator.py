"""The calculator against nanochat's recorded answers, and against anything a model might write."""

import json
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsft.generation.calculator import MAX_CHARACTERS, format_result, use_calculator

ORACLE = Path(__file__).parents[1] / "fixtures" / "engine"

# Where we differ from nanochat, and what we answer instead. Listed in docs/parity.md.
DIFFERENCES = {
    "...": None,
    "()": None,
    "'a,b,c'.count(',')": 2,
    "'__'.count('_')": 2,
    "'open'.count('o')": 1,
    "'files'.count('f')": 1,
    "'direction'.count('i')": 2,
    "'input'.count('i')": 1,
    "'vars'.count('a')": 1,
    "'compiled'.count('i')": 1,
    "'evaluate'.count('a')": 2,
    "'retrieval'.count('a')": 1,
    "'important'.count('t')": 2,
}
# nanochat of 2025 reached Python's builtins and its own local variables; nanochat of 2026 does not.
DIFFERENCES_2025 = {"str(112211).count('1')": None, "'a'.count(str('a'))": None, "formula.count('a')": None, "'a'.count(chr(97))": None}


def load_oracle(year: int) -> list[dict]:
    return json.loads((ORACLE / f"calculator_{year}.json").read_text())


@pytest.mark.parametrize(("year", "differences"), [(2026, DIFFERENCES), (2025, DIFFERENCES | DIFFERENCES_2025)])
def test_every_recorded_answer_is_the_same(year, differences):
    rows = load_oracle(year)
    printable = [row for row in rows if "str" in row and row["expr"] not in differences]
    assert len(printable) == len(rows) - len(differences) - 2
    for row in printable:
        value = use_calculator(row["expr"])
        assert (type(value).__name__, str(value)) == (row["type"], row["str"]), row["expr"]


@pytest.mark.parametrize(("expression", "value"), [*DIFFERENCES.items(), *DIFFERENCES_2025.items()])
def test_the_differences_from_nanochat_are_these(expression, value):
    assert use_calculator(expression) == value
    recorded = {row["expr"]: row["str"] for row in load_oracle(2025) if "str" in row}
    assert recorded[expression] != str(value)


def test_an_answer_with_more_digits_than_python_prints_is_no_answer():
    crashing = [row["expr"] for row in load_oracle(2026) if "str" not in row]
    assert len(crashing) == 2
    assert [use_calculator(expression) for expression in crashing] == [None, None]
    assert use_calculator("9" * 4300 + "*9") is None


@pytest.mark.parametrize(
    "expression",
    [
        "-" * 900 + "1",
        "-" * 9999 + "1",
        "1+" * 900 + "1",
        "1+" * 4999 + "1",
        "9*" * 4999 + "9",
        "-(" * 199 + "1" + ")" * 199,
        "(" * 9999,
        "'" * 9999,
        '"' + "'" * 9000,
        "'a'" * 3000 + ".count('a')",
        "'a'" + ".upper()" * 900 + ".count('a')",
        "'a'.count(" * 900 + "'a'" + ")" * 900,
        "x.count(" * 1200 + "!",
        "9" * 4000 + "//7" * 300,
    ],
    ids=lambda expression: f"{expression[:12]}-{len(expression)}",
)
def test_hostile_expressions_are_answered_or_refused_in_a_small_thread(expression):
    """Half a megabyte of stack is what a thread gets on macOS; Python's parser recurses on it."""
    answers = []
    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: answers.append(use_calculator(expression)), daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join(timeout=5)
    assert len(answers) == 1
    assert len(format_result(answers[0])) < MAX_CHARACTERS


def test_a_thread_other_than_the_main_one_gets_answers():
    answers = []
    thread = threading.Thread(target=lambda: answers.extend(map(use_calculator, ["1+1", "2*3", "'aa'.count('a')"])))
    thread.start()
    thread.join()
    assert answers == [2, 6, 2]


@pytest.mark.parametrize(
    "expression",
    [
        "0x10",
        "1_000",
        "1j",
        "'abc'",
        "True.count('a')",
        "b'a'.count(b'a')",
        "f'{1}'.count('1')",
        "'a'.count",
        "1if 'a'.count('a')else 2",
        "½",
    ],
)
def test_what_is_neither_arithmetic_nor_counting_has_no_answer(expression):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_calculator(expression) is None


def test_results_are_spelled_as_python_does():
    assert [format_result(use_calculator(text)) for text in ("10/5", "7//2", "0", "1/3")] == ["2.0", "3", "0", "0.3333333333333333"]


@settings(max_examples=300, deadline=1000)
@given(st.text(alphabet="0129'\"()+-*/., _acountlowerupper\n", max_size=60) | st.text(max_size=30))
def test_any_text_gives_a_printable_answer_or_none(text):
    value = use_calculator(text)
    assert value is None or type(value) in (int, float)
    assert isinstance(format_result(value), str)


@settings(max_examples=150, deadline=1000)
@given(
    st.text(alphabet="019'\"()+-*/. acount", min_size=1, max_size=12), st.integers(1, 3000), st.text(alphabet="019'()+.count", max_size=12)
)
def test_long_repetitions_are_answered_or_refused_at_once(unit, count, end):
    value = use_calculator(unit * count + end)
    assert value is None or type(value) in (int, float)
    assert len(format_result(value)) <= MAX_CHARACTERS


def numbers() -> st.SearchStrategy[str]:
    return st.integers(0, 10**6).map(str) | st.decimals(0, 1000, places=2).map(str)


def sums(operands: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "//", " + ", " - "])
    return st.builds("{}{}{}".format, operands, operators, operands) | operands.map("({})".format) | operands.map("-{}".format)


@settings(max_examples=200, deadline=1000)
@given(st.recursive(numbers(), sums, max_leaves=12))
def test_arithmetic_agrees_with_python(expression):
    try:
        expected = eval(expression)
    except ArithmeticError:
        expected = None
    assert str(use_calculator(expression)) == str(expected)


@settings(max_examples=200, deadline=1000)
@given(st.text(alphabet="abc ,._()0A", max_size=20), st.text(alphabet="abcA ,", max_size=2), st.sampled_from(["'", '"']))
def test_counting_agrees_with_python(text, part, quote):
    assert use_calculator(f"{quote}{text}{quote}.count({quote}{part}{quote})") == text.count(part)
    assert use_calculator(f"{quote}{text}{quote}.lower().count({quote}{part}{quote})") == text.lower().count(part)
