"""Who may be answered now: one at a time, a few in line, nobody else."""

import threading
from collections.abc import Iterator

from chatsft.dialogue.conversation import ChatError

POLL_SECONDS = 0.25


class Desk:
    """Admit one question at a time and let a few wait, in no order; the rest is turned away at once."""

    def __init__(self, num_waiting: int):
        self.num_waiting = num_waiting
        self.places = threading.BoundedSemaphore(num_waiting + 1)
        self.model = threading.Lock()

    def enter(self) -> None:
        """Take a place, or raise if there is none."""
        if not self.places.acquire(blocking=False):
            raise ChatError(f"The model is busy: it is answering, and {self.num_waiting} more questions wait. Try again in a moment.")

    def wait(self) -> Iterator[None]:
        """Yield until the model is free, so that whoever waits can be told, or can leave."""
        while not self.model.acquire(timeout=POLL_SECONDS):
            yield

    def leave(self, has_model: bool) -> None:
        """Give back the place, and the model if one had it."""
        if has_model:
            self.model.release()
        self.places.release()
