"""Calls that Python has no function for, with errors raised."""

import ctypes
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)
CAPABILITY_VERSION_3 = 0x20080522


def check(result: int, what: str) -> int:
    """Return what a C function returned, or raise the error it left in errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *values) -> int:
    """Call prctl(2); pointers are passed as ctypes objects, numbers as unsigned long."""
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in (*values, 0, 0, 0, 0)[:4]]
    return check(libc.prctl(ctypes.c_int(option), *words), f"prctl {option}")


def syscall(number: int, *values) -> int:
    """Make a system call by its number."""
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in values]
    return check(libc.syscall(ctypes.c_long(number), *words), f"system call {number}")


def drop_capabilities() -> None:
    """Give up every capability of this thread."""
    header, none = struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    check(libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(none)), "capset")
