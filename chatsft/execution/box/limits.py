"""What a process may use, and the privileges it gives up."""

import os
import resource
import signal
import sys

MEMORY_BYTES = 256 * 1024**2  # as nanochat
FILE_BYTES = 1024**2  # of each file, the one that takes the output included
OPEN_FILES = 64

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38


def limit_resources(seconds: int) -> None:
    """Bound memory, processor time, files and, for an ordinary user, processes (to none but this).

    A lower bound that is set already stays.
    """
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        given = resource.getrlimit(kind)[1]
        lower = limit if given == resource.RLIM_INFINITY else min(limit, given)
        resource.setrlimit(kind, (lower, lower))


def give_up_privileges() -> None:
    """Drop every capability, for good, and close this process's memory to others of the same user. (Only Linux has these.)"""
    if sys.platform == "linux":
        from .kernel import drop_capabilities, prctl

        prctl(PR_SET_NO_NEW_PRIVS, 1)
        drop_capabilities()
        prctl(PR_SET_DUMPABLE, 0)


def die_with(parent: int) -> None:
    """End this process when its parent ends."""
    if sys.platform == "linux":
        from .kernel import prctl

        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError("the parent has ended already")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, however they detached themselves."""
    if sys.platform == "linux":
        from .kernel import prctl

        prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kill the children of this process until there are none; with `adopt_orphans` that reaches every descendant."""
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


def _children() -> list[int]:
    """List them from /proc; where there is none (a sandbox, another system), nothing is found."""
    if not os.path.isdir("/proc/self"):
        return []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = file.read().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.append(int(name))
    return found
