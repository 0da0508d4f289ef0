"""Find the strongest sandbox that holds here, by trying to break out of each."""

import functools
import os
import sys
import tempfile
from pathlib import Path

from chatsft.execution.run import Program, run_program
from chatsft.execution.sandbox import SANDBOXES, Sandbox, SandboxError

# Tries the kernel itself through C, where no Python function says no, and returns what should not have worked.
BREAK_OUT = """
import ctypes, os

def break_out(secret, parent):
    libc = ctypes.CDLL(None, use_errno=True)

    def is_read(path):
        return libc.open(path.encode(), os.O_RDONLY) >= 0

    def starts_process():
        child = libc.fork()
        if child == 0:
            os._exit(0)
        return child > 0

    attempts = {
        "reads a file elsewhere": lambda: is_read(secret),
        "changes a file elsewhere": lambda: libc.truncate(secret.encode(), ctypes.c_long(0)) == 0 or libc.unlink(secret.encode()) == 0,
        "reads the parent's environment": lambda: is_read(f"/proc/{parent}/environ"),
        "opens a socket": lambda: libc.socket(2, 1, 0) >= 0,
        "starts a process": starts_process,
    }
    return [name for name, attempt in attempts.items() if attempt()]
"""


class WeakSandboxError(SandboxError):
    """The only sandbox here is one that generated code can leave."""


def find_sandbox(allow_weak: bool = False) -> Sandbox:
    """Return the strongest sandbox that holds.

    Raises:
        WeakSandboxError: if that is a weak one and `allow_weak` is not set.
    """
    faults = check_sandboxes()
    sandbox = next((sandbox for sandbox, fault in faults.items() if fault is None), None)
    if sandbox is None:
        raise SandboxError(f"generated code cannot be run on this system ({sys.platform}): {next(reversed(faults.values()))}")
    if sandbox.is_weak and not allow_weak:
        tried = "; ".join(f"{sandbox.level}: {fault}" for sandbox, fault in faults.items() if fault)
        raise WeakSandboxError(
            "generated code is not run here: it could read and delete your files and use the network. What would prevent that does "
            f"not work ({tried}). Use Linux 5.13 or newer with Landlock, or a machine where bubblewrap or unshare may make user "
            "namespaces; or, where nothing of worth can be reached, accept the risk with --allow_weak_sandbox."
        )
    return sandbox


@functools.cache
def check_sandboxes() -> dict[Sandbox, str | None]:
    """Try the sandboxes from the strongest on, up to the first that holds; say of each why it does not (None: it does)."""
    faults = {}
    for sandbox in SANDBOXES:
        faults[sandbox] = check_sandbox(sandbox)
        if faults[sandbox] is None:
            break
    return faults


def check_sandbox(sandbox: Sandbox) -> str | None:
    """Run a program that tries to get out; return None if it cannot, else what it could do. A weak sandbox only has to run it."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("a secret")
        expected = "is not None" if sandbox.is_weak else "== []"
        tests = f"escapes = break_out({str(secret)!r}, {os.getpid()})\nassert escapes {expected}, ', '.join(escapes)"
        try:
            return run_program(Program(BREAK_OUT, tests, "break_out"), sandbox, timeout=20.0).fault
        except (OSError, ValueError) as error:  # ValueError: no such processes on this system
            return str(error)
