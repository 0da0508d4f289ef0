"""The system call filter: a BPF program that lets through what `syscalls` lists and answers ENOSYS to everything else.

ENOSYS ("this kernel has no such call") is what C libraries know how to do without. See seccomp(2) and linux/bpf_common.h.
"""

import ctypes
import errno
import os
import struct
import sys

from .kernel import prctl
from .syscalls import ALLOWED, CONDITIONAL, MACHINES, OWN_PROCESS

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data, bytes

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def install_filter() -> None:
    """Filter this thread's system calls from here on, for good."""
    machine = os.uname().machine
    if machine not in MACHINES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"there is no system call table for {machine}")
    program = build_filter(machine, os.getpid())
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(instructions))))


def build_filter(machine: str, own_process: int) -> list[Instruction]:
    """Write the program for one kind of machine; a call through another machine's interface ends the process."""
    column, audit_number = MACHINES[machine]
    program = [(LOAD, 0, 0, MACHINE_AT), (JUMP_IF_EQUAL, 1, 0, audit_number), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    for numbers, argument, mask, values in CONDITIONAL.values():
        if numbers[column] is not None:
            program += _if_argument(numbers[column], argument, mask, [own_process if value == OWN_PROCESS else value for value in values])
    for numbers in ALLOWED.values():
        if numbers[column] is not None:
            program += [(JUMP_IF_EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    return [*program, (RETURN, 0, 0, REFUSE)]


def _if_argument(number: int, argument: int, mask: int, values: list[int]) -> list[Instruction]:
    """Decide one call by the low half of an argument; all that are looked at are 32 bits wide."""
    decide = [(LOAD, 0, 0, ARGUMENTS_AT + 8 * argument), (AND, 0, 0, mask)]
    for value in values:
        decide += [(JUMP_IF_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    decide.append((RETURN, 0, 0, REFUSE))
    return [(JUMP_IF_EQUAL, 0, len(decide), number), *decide]
