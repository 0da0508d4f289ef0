"""The sandboxed program: shut the doors, part into two processes, let one run the generated code and the other judge it."""

import fcntl
import os
import signal
import sys
import time
from contextlib import suppress

from .channel import receive, send
from .judge import find_fault
from .limits import adopt_orphans, die_with, end_descendants, give_up_privileges, limit_resources
from .solution import describe, serve_solution

LOOK_EVERY = 0.02  # seconds
REQUESTS, REPLIES = 3, 4  # in the process of the generated code, the first descriptors after the standard streams


def main(verdict: int) -> None:
    """Read a job from standard input; write {"ready": true} and {"fault": None or text}, or {"broken": text}, to the descriptor `verdict`.

    The job comes in two messages. The second, with the tests, is read when the generated code is in a process of its own
    that has closed standard input, so the code's memory never held them.
    """
    started = time.monotonic()
    try:
        setting = receive(0)
        sys.path += setting["packages"]
        enter_folder(setting)
        channel = start_solution(setting)
        watch(setting, started + setting["seconds"], verdict)
        confine(setting)
        send(verdict, {"ready": True})
    except Exception as error:
        send(verdict, {"broken": describe(error)})
        return
    finish(setting, verdict, find_fault(receive(0), channel))


def enter_folder(setting: dict) -> None:
    """Go into the folder that the code may write in, behind mounts of our own if this level has them."""
    if setting["staging"]:
        from .mounts import enter_own_root

        enter_own_root(*(setting[key] for key in ("readable", "folder", "staging", "folder_bytes", "folder_files")))
    os.chdir(setting["folder"])


def start_solution(setting: dict) -> tuple[int, int]:
    """Start the process of the generated code and return the ends of the pipes from and to it, once that process is confined."""
    requests, replies = os.pipe(), os.pipe()
    judge = os.getpid()
    adopt_orphans()
    if os.fork() == 0:
        become_solution(setting, requests[0], replies[1], judge)
    os.close(requests[0])
    os.close(replies[1])
    answer = receive(replies[0])
    if answer != {"confined": True}:
        raise OSError(answer["broken"])
    return replies[0], requests[1]


def become_solution(setting: dict, requests: int, replies: int, judge: int) -> None:
    """Keep the pipes and the standard streams, nothing else, and serve the code to the end of this process."""
    try:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        keep_only({REQUESTS: requests, REPLIES: replies})
        die_with(judge)
        confine(setting)
        send(REPLIES, {"confined": True})
    except Exception as error:
        send(REPLIES, {"broken": describe(error)})
        os._exit(1)
    try:
        serve_solution(setting["solution"], REQUESTS, REPLIES)
    finally:
        os._exit(0)


def keep_only(places: dict[int, int]) -> None:
    """Move open descriptors to these numbers and close all above the standard streams that are not among them."""
    moved = {place: fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for place, descriptor in places.items()}
    for place, descriptor in moved.items():
        os.dup2(descriptor, place)
    os.closerange(max(places) + 1, 4096)


def confine(setting: dict) -> None:
    """Shut this process's doors, the one to shutting doors last."""
    limit_resources(int(setting["seconds"]) + 2)
    give_up_privileges()
    if setting["landlock"]:
        from .landlock import restrict_files

        restrict_files(setting["readable"], setting["folder"])
    if setting["seccomp"]:
        from .seccomp import install_filter

        install_filter()


def watch(setting: dict, deadline: float, verdict: int) -> None:
    """Look every moment whether the time is over or the folder too full; a timer needs no thread and no trust in the tests."""

    def look(signal_number, frame) -> None:
        if time.monotonic() > deadline:
            finish(setting, verdict, f"timed out after {setting['seconds']:g} s")
        if is_too_full(setting):
            finish(setting, verdict, f"wrote more than {setting['folder_bytes'] // 1024**2} MiB or {setting['folder_files']} files")

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY, LOOK_EVERY)


def is_too_full(setting: dict) -> bool:
    """Measure the code's folder, which holds no folders."""
    sizes = []
    for entry in os.scandir(setting["folder"]):
        with suppress(FileNotFoundError):  # it may be deleted while we look
            sizes.append(entry.stat(follow_symlinks=False).st_blocks * 512)
    return len(sizes) >= setting["folder_files"] or sum(sizes) >= setting["folder_bytes"]


def finish(setting: dict, verdict: int, fault: str | None) -> None:
    """Deliver the verdict and end; the generated code's process ends with this one."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not setting["seccomp"]:  # else there are no other descendants, and the filter allows no signal
        end_descendants()
    send(verdict, {"fault": fault})
    os._exit(0)
