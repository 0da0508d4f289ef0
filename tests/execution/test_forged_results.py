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

RIGHT = "def helper(x):\n    return x\n\ndef add(a, b):\n    return a + b"

FORGERIES = {
    "SystemExit": "raise SystemExit",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "SystemExit in the call": "def helper(x): pass\ndef add(a, b): raise SystemExit(0)",
    "os._exit in the call": "import os\ndef helper(x): pass\ndef add(a, b): os._exit(0)",
    "crash": "import ctypes\ndef helper(x): pass\ndef add(a, b): ctypes.string_at(0)",
    "equals everything": "class Any:\n  __eq__ = lambda a, b: True\n  __sub__ = lambda a, b: 0\ndef helper(x): pass\ndef add(a, b): return Any()",
    "subclass of int": "class Any(int):\n  __eq__ = lambda a, b: True\ndef helper(x): pass\ndef add(a, b): return Any()",
    "own assert": "import builtins\nbuiltins.AssertionError = lambda *a: None\ndef helper(x): pass\ndef add(a, b): return 0",
    "own builtins": "import builtins, math\nbuiltins.abs = abs = lambda x: 0\nmath.isclose = lambda *a: True\ndef helper(x): pass\n"
    "def add(a, b): return 5",
    "own helper": "def helper(x): return 0\ndef add(a, b): return a + b if (a, b) != (1, 1) else 0",
    "own check": "def check(candidate): pass\ndef helper(x): pass\ndef add(a, b): pass",
    "printed verdict": "import sys\nfor stream in (sys.stdout, sys.stderr):\n  stream.write('{\"fault\": null}\\n')",
    "verdict in every descriptor": "import json, os, struct\ntext = json.dumps({'fault': None}).encode()\nfor fd in range(64):\n  try:\n"
    "    os.write(fd, struct.pack('I', len(text)) + text)\n  except OSError: pass",
    "garbage in every descriptor": "import os\nfor fd in range(64):\n  try: os.write(fd, b'\\xff' * 1000)\n  except OSError: pass",
    "deep reply": "import os, struct\ntext = b'[' * 100_000\nos.write(4, struct.pack('I', len(text)) + text)",
    "broken sandbox": "import os, struct\ntext = b'{\"broken\": \"\"}'\nos.write(4, struct.pack('I', len(text)) + text)",
    "reads the tests": "import gc, sys\ndef helper(x): pass\nframe, found = sys._getframe(), ''\nwhile frame:\n  found += repr(frame.f_locals) + "
    "repr(frame.f_globals)\n  frame = frame.f_back\nfound += repr([o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))])[:10**7]\n"
    "def add(a, b): return a + b if ''.join(['pass', 'word']) in found else 0",
    "reads standard input": "import os, sys\ndef helper(x): pass\nfound = sys.stdin.read() + os.read(0, 1000).decode()\n"
    "def add(a, b): return a + b if found else 0",
    "rewinds standard input": "import os\ndef helper(x): pass\ntry:\n  os.lseek(0, 0, 0); found = os.read(0, 100000)\nexcept OSError: found = b''\n"
    "def add(a, b): return a + b if found else 0",
}


def judge(code: str, sandbox) -> str | None:
    return run_program(Program(code, TESTS, "add", PREAMBLE), sandbox).fault


@pytest.mark.parametrize("sandbox", [*STRONG, LIMITS_ALONE], ids=name)
def test_the_right_code_passes(sandbox):
    assert judge(RIGHT, sandbox) is None


@pytest.mark.parametrize("sandbox", [STRONGEST, LIMITS_ALONE], ids=name)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_fails(forgery, sandbox):
    assert judge(FORGERIES[forgery], sandbox) is not None


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def add(a, b): return a - b\ndef helper(x): pass", "AssertionError (line 3 of the tests: assert candidate(2, 3) == 5  # password)"),
        ("def add(a, b): raise ValueError('no')", "ValueError: no (line 3 of the tests: assert candidate(2, 3) == 5  # password)"),
        ("def add(a, b): return a + b", "NameError: name 'helper' is not defined"),
        ("class Own(Exception): pass\ndef add(a, b): raise Own('no')", "SolutionError: Own: no"),
        ("def sub(a, b): return a + b", "there is no add in the code"),
        ("import sys\ndef add(a, b): sys.exit('bye')", "SystemExit: bye"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("def add(", "SyntaxError: '(' was never closed (<solution>, line 1)"),
        ("import os; os._exit(0)", "the code ended its process"),
        ("def add(a, b): return add(a, b)", "RecursionError: maximum recursion depth exceeded"),
        ("def add(a, b): return input()", "EOFError: EOF when reading a line"),
        ("import os; os.system('true')\ndef add(a, b): return a + b", "PermissionError: os.system: no other program or process can be started"),
    ],
)
def test_the_fault_says_what_went_wrong(code, fault):
    assert judge(code, STRONGEST).startswith(fault)
