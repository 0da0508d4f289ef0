"""The process of the generated code: it defines the code's names and answers calls to them.

Nothing here protects anything: the code can change all of it. It sees neither the tests nor the verdict; all it can do is answer calls,
with data.
"""

import sys
import types

from .channel import receive, send
from .values import decode, encode

# Refused by name only for the message's sake, and because os.system() would report a refusal as an exit status that hardly anyone reads.
PROGRAM_STARTS = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen")


def serve_solution(code: str, requests: int, replies: int) -> None:
    """Run the code as a module, tell its names (or what went wrong), and answer calls for ever."""
    sys.stdout.reconfigure(line_buffering=True)
    sys.addaudithook(_explain_refusal)
    module = sys.modules["solution"] = types.ModuleType("solution")
    try:
        exec(compile(code, "<solution>", "exec"), vars(module))
    except BaseException as error:
        return send(replies, {"failed": describe(error)})
    send(replies, {"names": list(vars(module))})
    while True:
        request = receive(requests)
        send(replies, _answer(vars(module)[request["name"]], request))


def describe(error: BaseException) -> str:
    """Write an exception in one line; its own text may be broken too."""
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")[:1000]
    except Exception:
        return type(error).__name__


def _answer(function: object, request: dict) -> dict:
    try:
        arguments = [decode(value) for value in request["args"]]
        keywords = {name: decode(value) for name, value in request["kwargs"].items()}
        return {"value": encode(function(*arguments, **keywords))}
    except Exception as error:
        return {"raised": type(error).__name__, "message": describe(error).partition(": ")[2]}
    except BaseException as error:
        return {"failed": describe(error)}


def _explain_refusal(event: str, arguments: tuple) -> None:
    if event in PROGRAM_STARTS:
        raise PermissionError(f"{event}: no other program or process can be started in the sandbox")
    if event == "socket.__new__":
        raise PermissionError("there is no network in the sandbox")
