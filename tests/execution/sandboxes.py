"""The sandboxes that hold on this machine, and a short way to run code in one."""

from chatsft.execution import Program, Sandbox, Verdict, run_program
from chatsft.execution.choice import check_sandbox
from chatsft.execution.sandbox import SANDBOXES

STRONG = [sandbox for sandbox in SANDBOXES if not sandbox.is_weak and check_sandbox(sandbox) is None]
LIMITS_ALONE = Sandbox("limits", landlock=False, seccomp=False)
STRONGEST = STRONG[0] if STRONG else None


def name(sandbox: Sandbox) -> str:
    return sandbox.level if sandbox.landlock else f"{sandbox.level}-without-landlock"


def run(code: str, expected: str = "attack() == 'refused'", sandbox: Sandbox | None = STRONGEST, timeout: float = 5.0) -> Verdict:
    """Run code that defines `attack`, judged by one expression."""
    assert sandbox is not None, "no sandbox holds on this machine: python -m chatsft.execution says why"
    return run_program(Program(code, f"assert {expected}, attack()", "attack"), sandbox, timeout)
