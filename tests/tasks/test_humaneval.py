"""HumanEval's programs, against recorded ones."""

import re

import pytest

from chatsft.execution import Sandbox, WeakSandboxError, find_sandbox, run_programs
from chatsft.tasks import HumanEval
from chatsft.tasks.humaneval import build_program, extract_imports, extract_program
from tests.execution.sandboxes import STRONG, name
from tests.tasks.fixtures import FIXTURES, load_fixture, write_lines

RECORDED = load_fixture("humaneval.json")
PROBLEMS = FIXTURES / "problems"


@pytest.mark.parametrize("case", RECORDED["extract_program"], ids=lambda case: repr(case["text"])[:40])
def test_programs_are_found_as_recorded(case):
    assert extract_program(case["text"]) == case["program"]


@pytest.mark.parametrize("case", RECORDED["extract_imports"], ids=lambda case: repr(case["prompt"])[:40])
def test_imports_are_found_as_recorded(case):
    assert extract_imports(case["prompt"]) == case["imports"]


def test_the_conversation_is_the_recorded_one(tmp_path):
    write_lines(tmp_path / "humaneval" / "HumanEval.jsonl", [RECORDED["row"]])
    assert list(HumanEval(data_root=tmp_path)) == [RECORDED["conversation"]]


def recorded_answers() -> list[tuple[dict, str]]:
    return [(RECORDED["conversation"], case["completion"]) for case in RECORDED["evaluate"]]


def test_verdicts_are_the_recorded_ones():
    programs = [build_program(*answer) for answer in recorded_answers()]
    verdicts = run_programs(programs, find_sandbox(), timeout=1.5)
    assert [verdict.passed for verdict in verdicts] == [case["success"] for case in RECORDED["evaluate"]]


def test_a_task_judges_one_answer_or_many():
    task = HumanEval(data_root=PROBLEMS)
    assert task.evaluate(RECORDED["conversation"], "def add(a, b):\n    return a + b") is True
    assert task.evaluate_all([(RECORDED["conversation"], f"def add(a, b):\n    return a {sign} b") for sign in "+-"]) == [True, False]
    assert re.search("in a sandbox of level '(bubblewrap|namespaces|filters)'$", task.prepare_evaluation())


@pytest.mark.parametrize("sandbox", [*STRONG[:1], *(pytest.param(weaker, marks=pytest.mark.slow) for weaker in STRONG[1:])], ids=name)
def test_all_published_solutions_pass(sandbox):
    answers = [(conversation, conversation["messages"][-1]["content"]) for conversation in HumanEval(data_root=PROBLEMS)]
    verdicts = run_programs([build_program(*answer) for answer in answers], sandbox)
    assert [verdict.fault for verdict in verdicts] == [None] * 164


def test_a_function_that_only_starts_as_the_prompt_does_fails():
    task = HumanEval(data_root=PROBLEMS)
    assert task.evaluate_all([(task[index], task[index]["messages"][0]["content"]) for index in range(8)]) == [False] * 8


@pytest.mark.parametrize(
    ("entry_point", "cheat"),
    [
        ("find_zero", "def poly(xs, x): return 0\ndef find_zero(xs): return 0"),
        ("decode_cyclic", "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s"),
        ("decode_shift", "def encode_shift(s): return s\ndef decode_shift(s): return s"),
    ],
)
def test_the_helpers_that_tests_call_are_the_prompt_s(entry_point, cheat):
    conversation = next(conversation for conversation in HumanEval(data_root=PROBLEMS) if conversation["entry_point"] == entry_point)
    assert not HumanEval(data_root=PROBLEMS).evaluate(conversation, cheat)


def test_a_helper_that_the_code_leaves_out_is_missed():
    conversation = next(conversation for conversation in HumanEval(data_root=PROBLEMS) if conversation["entry_point"] == "decode_shift")
    code = "def decode_shift(s):\n    return ''.join(chr((ord(ch) - 5 - ord('a')) % 26 + ord('a')) for ch in s)"
    (verdict,) = HumanEval(data_root=PROBLEMS).run([(conversation, code)])
    assert verdict.fault.startswith("NameError: name 'encode_shift' is not defined")


def test_a_prompt_that_is_no_code_gives_its_imports():
    conversation = {"messages": [{"role": "user", "content": "import math\nWrite f."}], "test": "def check(f): pass", "entry_point": "f"}
    assert build_program(conversation, "def f(): pass").preamble == "import math"


def test_a_weak_sandbox_has_to_be_accepted(monkeypatch):
    weak = {Sandbox("filters"): "it does not hold", Sandbox("limits", landlock=False, seccomp=False): None}
    monkeypatch.setattr("chatsft.execution.choice.check_sandboxes", lambda: weak)
    with pytest.raises(WeakSandboxError, match="--allow_weak_sandbox"):
        HumanEval(data_root=PROBLEMS).prepare_evaluation()
    task = HumanEval(data_root=PROBLEMS, allow_weak_sandbox=True)
    assert task.prepare_evaluation().endswith("level 'limits'")
    assert task.evaluate(RECORDED["conversation"], "def add(a, b):\n    return a + b")
