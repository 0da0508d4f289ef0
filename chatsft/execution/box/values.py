"""Plain data between the two processes of the sandbox, as JSON: the reader can trust it to be data, whoever wrote it.

Numbers, strings and None stand for themselves, a list for a list; everything else is an object with one key that names the kind.

>>> encode((1, {"a": {2}}, 1j))
{'tuple': [1, {'dict': [['a', {'set': [2]}]]}, {'complex': [0.0, 1.0]}]}
>>> decode(encode((1, {"a": {2}}, 1j)))
(1, {'a': {2}}, 1j)
"""

import sys
from collections.abc import Iterable, Iterator, Sized
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from numbers import Integral, Real

MAX_ITEMS = 1_000_000
MAX_PLAIN_INTEGER = 2**63


class Collection:
    """Stand for a collection of another kind (a deque, dict views, an array): it has a length and items and equals nothing else."""

    def __init__(self, kind: str, items: list):
        self.kind, self.items = kind, items

    def __iter__(self) -> Iterator:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<{self.kind} of {self.items}>"


class Unknown:
    """Stand for an object that is no data: it equals nothing else."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


def encode(value: object) -> object:
    """Turn a value into JSON's types; subclasses become the type they derive from."""
    if value is None or type(value) in (bool, float, str):
        return value
    number = _encode_number(value)
    if number is not None:
        return number
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item) for item in list.__iter__(value)]
    for kind, types in ENCODED.items():
        if isinstance(value, types):
            return {kind: FORMS[kind][0](value)}
    if isinstance(value, Iterator):
        return {"iterator": _items(value)}
    if isinstance(value, Iterable) and isinstance(value, Sized):
        return {"collection": [type(value).__name__, _items(value)]}
    return {"unknown": type(value).__name__}


def decode(value: object) -> object:
    """Undo `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return FORMS[kind][1](content)


def _encode_number(value: object) -> object:
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        value = int(value)
        return value if abs(value) < MAX_PLAIN_INTEGER else {"integer": hex(value)}
    if isinstance(value, Real) and not isinstance(value, Fraction):
        return float(value)
    return None


def _items(values: Iterable) -> list:
    items = [encode(item) for item in islice(values, MAX_ITEMS + 1)]
    if len(items) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS:,} items")
    return items


def _decode_dict(pairs: list) -> dict:
    return {decode(key): decode(value) for key, value in pairs}


ENCODED = {
    "tuple": tuple,
    "dict": dict,
    "set": set,
    "frozenset": frozenset,
    "range": range,
    "bytes": (bytes, bytearray),
    "complex": complex,
    "fraction": Fraction,
    "decimal": Decimal,
}
FORMS = {  # how each kind is written and read
    "tuple": (_items, lambda items: tuple(map(decode, items))),
    "dict": (lambda value: [[encode(key), encode(item)] for key, item in dict.items(value)], _decode_dict),
    "set": (_items, lambda items: set(map(decode, items))),
    "frozenset": (_items, lambda items: frozenset(map(decode, items))),
    "range": (lambda value: [value.start, value.stop, value.step], lambda bounds: range(*bounds)),
    "bytes": (lambda value: bytes(value).hex(), bytes.fromhex),
    "complex": (lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "fraction": (lambda value: [hex(value.numerator), hex(value.denominator)], lambda parts: Fraction(*(int(part, 16) for part in parts))),
    "decimal": (str, Decimal),
    "integer": (None, lambda digits: int(digits, 16)),
    "iterator": (None, lambda items: iter([decode(item) for item in items])),
    "collection": (None, lambda parts: Collection(parts[0], [decode(item) for item in parts[1]])),
    "unknown": (None, Unknown),
}
