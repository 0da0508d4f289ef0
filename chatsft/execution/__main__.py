"""Print which sandbox holds on this machine, and why each stronger one does not.

python -m chatsft.execution
"""

import sys

from chatsft.execution.choice import check_sandboxes
from chatsft.execution.sandbox import Sandbox


def main() -> int:
    faults = check_sandboxes()
    for sandbox, fault in faults.items():
        print(f"{describe(sandbox)}: {fault or ('runs, but code can leave it' if sandbox.is_weak else 'holds')}")
    return 0 if any(fault is None and not sandbox.is_weak for sandbox, fault in faults.items()) else 1


def describe(sandbox: Sandbox) -> str:
    """Name a sandbox with its layers.

    >>> describe(Sandbox("namespaces", landlock=False))
    'namespaces + seccomp'
    """
    layers = {"Landlock": sandbox.landlock, "seccomp": sandbox.seccomp}
    return " + ".join([sandbox.level, *(name for name, there in layers.items() if there)])


if __name__ == "__main__":
    sys.exit(main())
