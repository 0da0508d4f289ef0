"""The filter program, run by a small BPF machine, for both kinds of processor."""

import errno

import pytest

from chatsft.execution.box.seccomp import ALLOW, AND, JUMP_IF_EQUAL, KILL, LOAD, REFUSE, RETURN, build_filter
from chatsft.execution.box.syscalls import MACHINES

PROCESS = 4321
NUMBERS = {  # from each machine's unistd.h, written down apart from the table under test
    "x86_64": {"read": 0, "openat": 257, "clone": 56, "execve": 59, "socket": 41, "kill": 62, "prctl": 157, "fcntl": 72, "prlimit64": 302},
    "aarch64": {"read": 63, "openat": 56, "clone": 220, "execve": 221, "socket": 198, "kill": 129, "prctl": 167, "fcntl": 25}
    | {"prlimit64": 261},
}


def decide(machine: str, call: str, *arguments: int, through: str | None = None) -> int:
    """Run the filter on a call."""
    data = {0: NUMBERS[machine][call], 4: MACHINES[through or machine][1]}
    data |= {16 + 8 * place: argument & 0xFFFFFFFF for place, argument in enumerate(arguments)}
    program, accumulator, at = build_filter(machine, PROCESS), 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == LOAD:
            accumulator = data[operand]
        elif code == AND:
            accumulator &= operand
        elif code == JUMP_IF_EQUAL:
            at += if_true if accumulator == operand else if_false
        else:
            assert code == RETURN
            return operand


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("call", "decision"),
    [
        (("read",), ALLOW),
        (("clone", 0x10000), REFUSE),
        (("execve",), REFUSE),
        (("socket", 2, 1, 0), REFUSE),
        (("prctl", 1), REFUSE),
        (("kill", PROCESS, 9), ALLOW),
        (("kill", PROCESS + 1, 9), REFUSE),
        (("kill", -1, 9), REFUSE),
        (("prlimit64", 0), ALLOW),
        (("prlimit64", PROCESS + 1), REFUSE),
        (("openat", -100, 0, 0o0), ALLOW),
        (("openat", -100, 0, 0o101), ALLOW),
        (("openat", -100, 0, 0o1101), ALLOW),
        (("openat", -100, 0, 0o1000), REFUSE),
        (("openat", -100, 0, 0o3), REFUSE),
        (("openat", -100, 0, 0o1003), REFUSE),
        (("fcntl", 0, 1), ALLOW),
        (("fcntl", 0, 8), REFUSE),
    ],
    ids=str,
)
def test_calls_are_decided(machine, call, decision):
    assert decide(machine, *call) == decision


@pytest.mark.parametrize(("machine", "other"), [("x86_64", "aarch64"), ("aarch64", "x86_64")])
def test_a_call_through_another_machines_interface_ends_the_process(machine, other):
    assert decide(machine, "read", through=other) == KILL


def test_a_refusal_says_that_there_is_no_such_call():
    assert REFUSE & 0xFFFF == errno.ENOSYS
