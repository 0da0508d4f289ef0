"""Which sandbox is chosen, what is said about it, and what the weakest one still does."""

import os

import pytest

from chatsft.execution import Program, Sandbox, SandboxError, WeakSandboxError, choice, find_sandbox, run_program, run_programs
from chatsft.execution.__main__ import main
from chatsft.execution.run import num_workers
from chatsft.execution.sandbox import SANDBOXES
from tests.execution.sandboxes import LIMITS_ALONE, STRONGEST, run


@pytest.fixture
def pretend(monkeypatch):
    """Say of each sandbox whether it holds, without trying."""

    def set_faults(*levels_that_hold: str) -> None:
        faults = {sandbox: None if sandbox.level in levels_that_hold else f"no {sandbox.level} here" for sandbox in SANDBOXES}
        monkeypatch.setattr(choice, "check_sandboxes", lambda: faults)
        monkeypatch.setattr("chatsft.execution.__main__.check_sandboxes", lambda: faults)

    return set_faults


@pytest.mark.parametrize("level", ["bubblewrap", "namespaces", "filters"])
def test_the_strongest_that_holds_is_taken(pretend, level):
    pretend(level, "limits")
    assert find_sandbox() == Sandbox(level)


def test_a_weak_sandbox_is_refused_unless_it_is_accepted(pretend):
    pretend("limits")
    with pytest.raises(WeakSandboxError, match=r"filters: no filters here.*Linux 5\.13.*--allow_weak_sandbox"):
        find_sandbox()
    assert find_sandbox(allow_weak=True) == Sandbox("limits", landlock=False)


def test_without_any_sandbox_nothing_runs(pretend):
    pretend()
    with pytest.raises(SandboxError, match="cannot be run on this system"):
        find_sandbox(allow_weak=True)


@pytest.mark.parametrize(
    ("sandbox", "escapes"),
    [
        (Sandbox("filters", landlock=False), ["reads a file elsewhere", "changes a file elsewhere"]),
        (Sandbox("nothing", landlock=False, seccomp=False), ["reads a file elsewhere", "changes a file elsewhere", "opens a socket"]),
    ],
)
def test_the_check_finds_a_sandbox_that_does_not_hold(sandbox, escapes):
    fault = choice.check_sandbox(sandbox)
    assert [escape for escape in escapes if escape not in fault] == []


def test_the_check_says_why_a_sandbox_does_not_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choice.check_sandbox(Sandbox("bubblewrap")) == "bwrap is not installed"
    (tmp_path / "unshare").write_text("#!/bin/sh\necho no namespaces for you >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    assert choice.check_sandbox(Sandbox("namespaces")) == "the namespaces sandbox did not start: no namespaces for you"


def test_a_sandbox_that_cannot_be_set_up_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr("chatsft.execution.sandbox.readable_paths", lambda: ["/not/there"])
    with pytest.raises(SandboxError, match=r"filters sandbox could not be set up: .*'/not/there'"):
        run_program(Program("", "", ""), Sandbox("filters"))


def test_the_command_says_what_holds(pretend, capsys):
    pretend("limits")
    assert main() == 1
    assert "filters + Landlock + seccomp: no filters here\nlimits + seccomp: runs, but code can leave it\n" in capsys.readouterr().out
    pretend("filters")
    assert main() == 0
    assert "filters + Landlock + seccomp: holds\n" in capsys.readouterr().out


def test_programs_run_at_the_same_time_and_keep_their_order():
    def program(number: int) -> Program:
        return Program(f"import time\ndef f():\n    time.sleep(0.3)\n    return {number}", "assert f() != 2, f()", "f")

    verdicts = run_programs(map(program, range(4)), STRONGEST)
    assert [verdict.fault for verdict in verdicts] == [None, None, "AssertionError: 2 (line 1 of the tests: assert f() != 2, f())", None]


def test_ranks_share_the_processors(monkeypatch):
    alone = num_workers()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10 * alone))
    assert num_workers() == 1


def test_code_may_use_its_folder_and_installed_packages():
    code = """
import tempfile
import numpy
def attack():
    with open("notes.txt", "w") as file:
        file.write("3")
    with tempfile.TemporaryFile() as file:
        file.write(b"4")
    return numpy.int64(open("notes.txt").read()) + numpy.float64(1)
"""
    verdict = run(code, "attack() == 4")
    assert verdict.passed, verdict


def test_the_output_is_kept():
    code = "import sys\ndef attack():\n    print('out')\n    print('err', file=sys.stderr)\n    return 'refused'"
    assert run(code).output == "out\nerr\n"


def test_limits_alone_let_only_root_start_processes_and_end_those_that_detached_themselves():
    code = """
import ctypes, os, time
libc = ctypes.CDLL(None)
def attack():
    read, write = os.pipe()
    child = libc.fork()
    if child < 0:
        return 0
    if child == 0:
        libc.setsid()
        if libc.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            time.sleep(100)
        os._exit(0)
    return int(os.read(read, 100))
"""
    fault = run(code, "False", LIMITS_ALONE).fault
    process = int(fault.split()[1])
    assert (process > 0) == (os.geteuid() == 0)
    assert not process or not os.path.exists(f"/proc/{process}")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("while True: pass", "timed out after 0.5 s"),
        ("bytearray(2**40)", "MemoryError"),
        ("while True: print('x' * 1000)", "OSError: [Errno 27] File too large"),
        ("import signal, os; os.kill(os.getpid(), signal.SIGKILL)", "the code ended its process"),
    ],
)
def test_limits_alone_bound_time_memory_and_output(body, fault):
    assert run(f"def attack():\n    {body}", sandbox=LIMITS_ALONE, timeout=0.5).fault.startswith(fault)
