"""Evaluate the small expressions a chat model writes between its python tokens.

The language is the one nanochat's models are trained on: arithmetic, and counting one string in another. An expression is matched
against the characters nanochat accepts, parsed into a syntax tree and evaluated node by node over an allow-list; nothing is ever
executed. The differences from nanochat are listed in docs/parity.md.
"""

import ast
import operator
import re
from collections.abc import Callable
from functools import partial

Number = int | float
Value = Number | str | Callable

# Bounds the work and the digits of every intermediate: a product has no more digits than its factors were written with.
MAX_CHARACTERS = 10_000
# Bounds how deep Python's parser recurses, which it does on the C stack: half a megabyte in a thread on macOS.
MAX_OPERATIONS = 1_000

ARITHMETIC = re.compile(r"[0-9+\-*/.() ]*")
COUNTING = re.compile(r"""[a-zA-Z0-9'"()._, ]*\.count\([a-zA-Z0-9'"()._, ]*""")
COUNTING_OUTSIDE_QUOTES = re.compile(r"(?:count|lower|upper|[(). ])*")
QUOTED_OR_COMMA = re.compile(r"""('[^']*'|"[^"]*")|,""")

BINARY_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
UNARY_OPERATORS = {ast.UAdd: operator.pos, ast.USub: operator.neg}
STRING_METHODS = {"count": str.count, "lower": str.lower, "upper": str.upper}
OPERATOR_NODES = (ast.operator, ast.unaryop, ast.expr_context)

# What a malformed, undefined (1/0) or oversized expression raises while it is parsed, evaluated or printed.
EXPRESSION_ERRORS = (SyntaxError, TypeError, KeyError, ValueError, ArithmeticError, RecursionError, MemoryError)


def use_calculator(expression: str) -> Number | None:
    """Evaluate an expression, or return None where it is not one the calculator knows.

    Never raises, does a bounded amount of work, and works in any thread. A result can always be printed.

    >>> use_calculator("1,000*2"), use_calculator("10/5"), use_calculator("2**10")
    (2000, 2.0, None)
    >>> use_calculator("'strawberry'.count('r')")
    3
    """
    if not _is_within_bounds(expression):
        return None
    expression = _remove_thousands_separators(expression)
    if not (_is_arithmetic(expression) or _is_counting(expression)):
        return None
    try:
        value = _evaluate(ast.parse(expression.strip(), mode="eval").body)
        str(value)  # raises where an int has more digits than the interpreter prints
    except EXPRESSION_ERRORS:
        return None
    return value if isinstance(value, Number) else None


def format_result(value: Number) -> str:
    """Return the text that goes between the output tokens: Python's own spelling, as nanochat has it.

    >>> format_result(36), format_result(2.0)
    ('36', '2.0')
    """
    return str(value)


def _is_within_bounds(expression: str) -> bool:
    outside_quotes = QUOTED_OR_COMMA.sub("", expression[:MAX_CHARACTERS])
    return len(expression) <= MAX_CHARACTERS and sum(map(outside_quotes.count, "+-*/.(")) <= MAX_OPERATIONS


def _remove_thousands_separators(expression: str) -> str:
    """Drop the commas that are outside quotes.

    >>> _remove_thousands_separators("1,000*2"), _remove_thousands_separators("'a,b'.count(',')")
    ('1000*2', "'a,b'.count(',')")
    """
    return QUOTED_OR_COMMA.sub(lambda match: match[1] or "", expression)


def _is_arithmetic(expression: str) -> bool:
    return bool(ARITHMETIC.fullmatch(expression)) and "**" not in expression


def _is_counting(expression: str) -> bool:
    """Say whether the expression counts in string literals, with nothing but method names outside the quotes."""
    outside_quotes = QUOTED_OR_COMMA.sub("", expression)
    return bool(COUNTING.fullmatch(expression) and COUNTING_OUTSIDE_QUOTES.fullmatch(outside_quotes))


def _evaluate(root: ast.expr) -> Value:
    """Evaluate a tree without recursion, so that a sum of a thousand terms needs no deep stack.

    `ast.walk` yields parents before children; reversed, the value of every child is known when its parent's turn comes.
    """
    values: dict[ast.AST, Value] = {}
    for node in reversed(list(ast.walk(root))):
        if not isinstance(node, OPERATOR_NODES):
            values[node] = _evaluate_node(node, values)
    return values[root]


def _evaluate_node(node: ast.AST, values: dict[ast.AST, Value]) -> Value:
    """Evaluate one node from its children's values; anything off the allow-list is a TypeError or a KeyError."""
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return UNARY_OPERATORS[type(op)](values[operand])
        case ast.BinOp(left=left, op=op, right=right):
            return BINARY_OPERATORS[type(op)](values[left], values[right])
        case ast.Attribute(value=owner, attr=name):
            return partial(STRING_METHODS[name], values[owner])
        case ast.Call(func=ast.Attribute() as method, args=arguments, keywords=[]):
            return values[method](*[values[argument] for argument in arguments])
    raise TypeError(f"{type(node).__name__} is not part of the calculator's language")
