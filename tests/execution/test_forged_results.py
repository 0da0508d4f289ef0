"""Programs that do not solve the problem and want to pass: none of them does, at any level."""

import pytest

from chatsft.execution import Program, run_program
from tests.execution.sandboxes import LIMITS_ALONE, STRONG, STRONGEST, name

TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5  # password
    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-6
    assert math.isclose(candidate(1, 1), helper(2))

check(add)
"""
PREAMBLE = "import math\n\ndef helper(x):\n    return x\n\ndef add(a, b):\n    '''Add.'''\n"

FORGERIES = {
    "SystemExit": "raise SystemExit",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "SystemExit in the call": "def add(a, b): raise SystemExit(0)",
    "os._exit in the call": "import os\ndef add(a, b): os._exit(0)",
    "crash": "import ctypes\ndef add(a, b): ctypes.string_at(0)",
    "equals everything": """
class Any:
    __eq__ = lambda a, b: True
    __sub__ = lambda a, b: 0
def add(a, b): return Any()
""",
    "a number that equals everything": """
class Any(int):
    __eq__ = lambda a, b: True
def add(a, b): return Any()
""",
    "own AssertionError": """
import builtins
builtins.AssertionError = lambda *args: None
def add(a, b): return 0
""",
    "own builtins": """
import builtins, math
builtins.abs = abs = lambda x: 0
math.isclose = lambda *args: True
def add(a, b): return 5
""",
    "own helper": """
def helper(x): return 0
def add(a, b): return a + b if (a, b) != (1, 1) else 0
""",
    "own check": """
def check(candidate): pass
def add(a, b): pass
""",
    "printed verdict": """
import sys
for stream in (sys.stdout, sys.stderr):
    stream.write('{"fault": null}\\n')
""",
    "verdict in every descriptor": """
import json, os, struct
text = json.dumps({"fault": None}).encode()
for descriptor in range(64):
    try:
        os.write(descriptor, struct.pack("I", len(text)) + text)
    except OSError:
        pass
""",
    "garbage in every descriptor": """
import os
for descriptor in range(64):
    try:
        os.write(descriptor, bytes([255]) * 1000)
    except OSError:
        pass
""",
    "a reply nested too deeply": """
import os, struct
os.write(4, struct.pack("I", 100_000) + b"[" * 100_000)
""",
    "a broken sandbox": """
import os, struct
text = b'{"broken": ""}'
os.write(4, struct.pack("I", len(text)) + text)
""",
    "looking for the tests in memory": """
import gc, sys
found, frame = "", sys._getframe()
while frame:
    found += repr(frame.f_locals) + repr(frame.f_globals)
    frame = frame.f_back
found += repr([thing for thing in gc.get_objects() if isinstance(thing, (dict, list, tuple))])[:10**7]
def add(a, b): return a + b if "".join(["pass", "word"]) in found else 0
""",
    "reading standard input": """
import os, sys
found = sys.stdin.read() + os.read(0, 1000).decode()
def add(a, b): return a + b if found else 0
""",
    "rewinding standard input": """
import os
try:
    os.lseek(0, 0, os.SEEK_SET)
    found = os.read(0, 100_000)
except OSError:
    found = b""
def add(a, b): return a + b if found else 0
""",
}
HELPER = "def helper(x):\n    return x\n\n"  # the tests need one, or they would fail for want of it


def judge(code: str, sandbox) -> str | None:
    return run_program(Program(code, TESTS, "add", PREAMBLE), sandbox).fault


@pytest.mark.parametrize("sandbox", [*STRONG, LIMITS_ALONE], ids=name)
def test_the_right_code_passes(sandbox):
    assert judge(HELPER + "def add(a, b):\n    return a + b", sandbox) is None


@pytest.mark.parametrize("sandbox", [STRONGEST, LIMITS_ALONE], ids=name)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_fails(forgery, sandbox):
    assert judge(HELPER + FORGERIES[forgery], sandbox) is not None


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def add(a, b): return a - b\ndef helper(x): pass", "AssertionError (line 3 of the tests: assert candidate(2, 3) == 5"),
        ("def add(a, b): raise ValueError('no')", "ValueError: no (line 3 of the tests: assert candidate(2, 3) == 5"),
        ("def add(a, b): return a + b", "NameError: name 'helper' is not defined"),
        ("class Own(Exception): pass\ndef add(a, b): raise Own('no')", "SolutionError: Own: no"),
        ("def sub(a, b): return a + b", "there is no add in the code"),
        ("import sys\ndef add(a, b): sys.exit('bye')", "SystemExit: bye"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("def add(", "SyntaxError: '(' was never closed (<solution>, line 1)"),
        ("import os; os._exit(0)", "the code ended its process"),
        ("def add(a, b): return add(a, b)", "RecursionError: maximum recursion depth exceeded"),
        ("def add(a, b): return input()", "EOFError: EOF when reading a line"),
        ("import os; os.system('true')\ndef add(a, b): return a + b", "PermissionError: os.system: no other program"),
    ],
)
def test_the_fault_says_what_went_wrong(code, fault):
    assert judge(code, STRONGEST).startswith(fault)
