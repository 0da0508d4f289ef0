"""SIGTERM, with which schedulers announce the end of a job."""

import signal
import threading
from types import FrameType


class StopSignal:
    """Notice SIGTERM inside a `with` block instead of dying of it; outside the main thread, where Python forbids it, change nothing."""

    def __init__(self):
        self.is_received = False
        self._previous = None

    def __enter__(self):
        self.is_received = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_received = True
