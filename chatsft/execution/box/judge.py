"""The process of the tests: it calls the generated code in the other process and comes to the verdict."""

import builtins
import types

from .channel import receive, send
from .solution import describe
from .values import decode, encode

Channel = tuple[int, int]  # descriptors: replies are read from the first, requests written to the second


class SolutionEnded(BaseException):
    """The generated code's process cannot answer any more; no `except Exception` in a test should catch that."""


class SolutionError(Exception):
    """An exception of a class that only the generated code knows."""


class SolutionFunction:
    """Call a function of the generated code in its own process: arguments and result are copies."""

    def __init__(self, name: str, channel: Channel):
        self.name, self.channel = name, channel

    def __call__(self, *args, **kwargs) -> object:
        keywords = {name: encode(value) for name, value in kwargs.items()}
        reply = exchange(self.channel, {"name": self.name, "args": [encode(value) for value in args], "kwargs": keywords})
        if "raised" in reply:
            raise make_exception(reply["raised"], reply["message"])
        return decode(reply["value"])


def find_fault(job: dict, channel: Channel) -> str | None:
    """Run the tests; return None if all of them pass, else one line that says what went wrong.

    Args:
        job: `preamble`, code that is trusted, `tests`, and the `entry_point` that the tests name.
        channel: the pipes from and to the generated code.
    """
    try:
        names = exchange(channel, None)["names"]
        namespace = run_preamble(job["preamble"], names)
        if job["entry_point"] not in names:
            return f"there is no {job['entry_point']} in the code"
        namespace[job["entry_point"]] = SolutionFunction(job["entry_point"], channel)
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
    except SolutionEnded as error:
        return str(error)[:1000]
    except BaseException as error:
        return describe(error) + _failed_line(error, job["tests"])
    return None


def run_preamble(preamble: str, names: list[str]) -> dict:
    """Return what the preamble defines, its functions only if the generated code has them too.

    That is what the tests would find if code and tests were one program, except that here the code cannot change what
    a test works with: its own `abs` or `math`, or helper functions that a test calls, are not the ones that judge it.
    """
    namespace = {"__name__": "tests"}
    exec(compile(preamble, "<preamble>", "exec"), namespace)
    return {name: value for name, value in namespace.items() if name in names or not _is_defined_here(value)}


def exchange(channel: Channel, request: dict | None) -> dict:
    """Send a request, if there is one, and wait for the reply."""
    try:
        if request is not None:
            send(channel[1], request)
        reply = receive(channel[0])
        if "failed" in reply:
            raise SolutionEnded(reply["failed"])
        return reply
    except (EOFError, OSError):
        raise SolutionEnded("the code ended its process") from None
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise SolutionEnded(f"no answer that can be read: {describe(error)}") from None


def make_exception(name: str, message: str) -> Exception:
    """Rebuild an exception of Python's own; others become a SolutionError with the name."""
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:
            pass
    return SolutionError(f"{name}: {message}")


def _is_defined_here(value: object) -> bool:
    return isinstance(value, types.FunctionType | type) and value.__module__ == "tests"


def _failed_line(error: BaseException, tests: str) -> str:
    number, frame = None, error.__traceback__
    while frame:
        number = frame.tb_lineno if frame.tb_frame.f_code.co_filename == "<tests>" else number
        frame = frame.tb_next
    return f" (line {number} of the tests: {tests.splitlines()[number - 1].strip()})" if number else ""
