"""Generated code, run and judged where it can do no harm. docs/sandbox.md says what holds."""

from chatsft.execution.choice import WeakSandboxError, find_sandbox
from chatsft.execution.run import Program, Verdict, run_program, run_programs
from chatsft.execution.sandbox import Sandbox, SandboxError

__all__ = ["Program", "Sandbox", "SandboxError", "Verdict", "WeakSandboxError", "find_sandbox", "run_program", "run_programs"]
