"""Access to files: some folders to read, one to write in, nothing else. See landlock(7); Linux 5.13 or newer."""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from .kernel import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every machine
ASK_VERSION, PATH_BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
TRUNCATE = 1 << 14
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights each version knows; 16 from version 5
NETWORK = 0b11  # bind and connect TCP, from version 4
SCOPES = 0b11  # abstract sockets and signals stay within, from version 6


def restrict_files(readable: Iterable[str], folder: str) -> None:
    """Let this thread read under `readable`, and read, write, make and remove files in `folder`; /dev/null takes everything.

    Folders cannot be made, so that `folder` stays flat and is easily measured. Names and sizes of files elsewhere can
    still be asked for: Landlock does not govern stat.
    """
    version = syscall(CREATE_RULESET, ctypes.c_void_p(), 0, ASK_VERSION)
    handled = (1 << RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("QQQ", handled, NETWORK if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = syscall(CREATE_RULESET, ctypes.create_string_buffer(attributes), size, 0)
    for path in readable:
        _allow(ruleset, path, READ_FILE | READ_DIR)
    _allow(ruleset, "/dev/null", READ_FILE | WRITE_FILE)
    _allow(ruleset, folder, (READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE) & handled)
    syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= READ_FILE | WRITE_FILE
    syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor)), 0)
    os.close(descriptor)
