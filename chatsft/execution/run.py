"""Run tests against generated code: one box per run, many at a time."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import BinaryIO

from chatsft.execution.box.channel import receive, send
from chatsft.execution.sandbox import Sandbox, SandboxError

GRACE = 2.0  # seconds that a box gets beyond its own time limit before it is killed from outside
OUTPUT_BYTES = 10_000


@dataclass(frozen=True)
class Program:
    """Generated code and what judges it.

    Args:
        solution: the generated code.
        tests: code that raises if the solution is wrong. It finds the solution's `entry_point` under its name, and runs in another process.
        entry_point: the function of the solution that the tests call.
        preamble: trusted code that goes before the tests, such as imports.
    """

    solution: str
    tests: str
    entry_point: str
    preamble: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome.

    Args:
        fault: None if the tests ran to their end, else what went wrong.
        output: the beginning of what the code printed.
    """

    fault: str | None
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.fault is None


def run_program(program: Program, sandbox: Sandbox, timeout: float = 5.0) -> Verdict:
    """Run a program's tests in a sandbox of its own.

    Args:
        timeout: seconds for everything, the start of Python included.

    Raises:
        SandboxError: if the sandbox does not come up. That is never the code's fault, so it is no verdict.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chatsft-", ignore_cleanup_errors=True))
        job, output, verdict = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        send(job.fileno(), {**sandbox.setting(folder), "seconds": timeout, "solution": program.solution})
        send(job.fileno(), {"tests": program.tests, "entry_point": program.entry_point, "preamble": program.preamble})
        job.seek(0)
        _run_box(sandbox.command(verdict.fileno()), job, output, verdict, timeout)
        text = _read_beginning(output)
        return Verdict(_read_fault(verdict, text, sandbox), text, time.monotonic() - started)


def run_programs(programs: Iterable[Program], sandbox: Sandbox, timeout: float = 5.0) -> list[Verdict]:
    """Run programs on all of this process's processors at a time, and return the verdicts in order."""
    with ThreadPoolExecutor(num_workers()) as pool:
        return list(pool.map(lambda program: run_program(program, sandbox, timeout), programs))


def num_workers() -> int:
    """Count the processors of this rank: those it may run on, shared with the ranks beside it."""
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, num_processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _run_box(command: list[str], job: BinaryIO, output: BinaryIO, verdict: BinaryIO, timeout: float) -> None:
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    streams = {"stdin": job, "stdout": output, "stderr": output, "pass_fds": [verdict.fileno()]}
    process = subprocess.Popen(command, env=environment, cwd="/", start_new_session=True, **streams)
    try:
        _wait(process, timeout + GRACE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the box if it is late, and what it may have left in its group
        process.wait()


def _wait(process: subprocess.Popen, timeout: float) -> None:
    """Wait for the end, at most so long. (`Popen.wait` with a timeout looks only every 50 ms; Linux can wake us at that moment.)"""
    if sys.platform == "linux":
        descriptor = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(timeout * 1000)
        os.close(descriptor)
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout)


def _read_fault(verdict: BinaryIO, output: str, sandbox: Sandbox) -> str | None:
    """Read the box's messages; what is not there, it did not live to write."""
    verdict.seek(0)
    try:
        first = receive(verdict.fileno())
    except EOFError:
        raise SandboxError(f"the {sandbox.level} sandbox did not start: {output.strip() or 'no reason given'}") from None
    if "broken" in first:
        raise SandboxError(f"the {sandbox.level} sandbox could not be set up: {first['broken'].strip()}")
    try:
        return receive(verdict.fileno())["fault"]
    except EOFError:
        return "ended without a verdict"


def _read_beginning(output: BinaryIO) -> str:
    output.seek(0)
    return output.read(OUTPUT_BYTES).decode("utf-8", "replace")
