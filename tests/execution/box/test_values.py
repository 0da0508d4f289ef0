"""Values on their way between the processes of the sandbox."""

import collections
import json
import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from chatsft.execution.box import values
from chatsft.execution.box.values import decode, encode

SAME = [
    None,
    True,
    0,
    -(2**63),
    2**20_000,
    -0.0,
    1e308,
    float("inf"),
    "",
    "a\x00\ud83d é",
    [],
    [[1], (2,), {3: [4]}],
    {},
    {(1, 2): {"a"}, None: frozenset({1})},
    set(),
    range(1, 10, 3),
    b"\x00\xff",
    1 + 2j,
    Decimal("1.10"),
    Fraction(1, 3),
]


def pass_over(value: object) -> object:
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize("value", SAME, ids=lambda value: type(value).__name__)
def test_data_arrives_as_it_was(value):
    arrived = pass_over(value)
    assert type(arrived) is type(value)
    assert arrived == value


def test_signs_of_zero_and_nan_arrive():
    assert math.copysign(1, pass_over(-0.0)) == -1
    assert math.isnan(pass_over(float("nan")))


@pytest.mark.parametrize(
    ("value", "arrived"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.complex128(1j), 1j),
        (np.str_("a"), "a"),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.namedtuple("Point", "x y")(1, 2), (1, 2)),
        (bytearray(b"a"), b"a"),
    ],
    ids=repr,
)
def test_subclasses_and_numpys_numbers_become_python_s_own(value, arrived):
    assert type(pass_over(value)) is type(arrived)
    assert pass_over(value) == arrived


def test_a_method_of_a_subclass_is_left_behind():
    class Any(int):
        def __eq__(self, other):
            return True

    assert pass_over([Any(1)]) == [1]
    assert pass_over([Any(1)]) != [2]


def test_other_collections_have_items_and_a_length_but_equal_nothing():
    arrived = pass_over(collections.deque([1, 2]))
    assert (list(arrived), len(arrived), repr(arrived)) == ([1, 2], 2, "<deque of [1, 2]>")
    assert arrived != [1, 2]


def test_an_iterator_arrives_as_one():
    arrived = pass_over(i * i for i in range(3))
    assert next(arrived) == 0
    assert list(arrived) == [1, 4]


def test_an_endless_iterator_is_refused(monkeypatch):
    monkeypatch.setattr(values, "MAX_ITEMS", 10)
    with pytest.raises(ValueError, match="more than 10 items"):
        encode(iter(int, 1))


def test_what_is_no_data_arrives_as_a_name_that_equals_nothing():
    assert repr(pass_over(object())) == "<object object>"
    assert pass_over(print) != pass_over(print)


def test_numpy_is_not_imported_to_look_for_its_numbers(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    assert encode(3) == 3
    assert "numpy" not in sys.modules
