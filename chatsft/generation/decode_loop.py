"""Generate many rows in few slots: the host's side, which looks at the device once in many steps."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers.generation.streamers import BaseStreamer

from chatsft.generation.decoder import Decoder, borrow_decoder
from chatsft.generation.kernel_step import STEPS_A_GRAPH
from chatsft.generation.sampling import Sampling
from chatsft.generation.slots import TRACE_STEPS
from chatsft.generation.tool_state import ChatTokenizer, ToolCallState
from chatsft.model.modeling_gpt import GPTForCausalLM

STEPS_BETWEEN_LOOKS = 16
SHARE_TO_REFILL = 8
"""Prompts wait until one in eight slots is free, because caching them costs about as much for one as for many."""


@dataclass(eq=False)
class Row:
    """One prompt and what has been generated for it, the token that ended it included."""

    prompt: list[int]
    limit: int
    tools: ToolCallState | None = None
    tokens: list[int] = field(default_factory=list)
    num_awaited: int = 0  # steps that were launched and not read yet
    is_finished: bool = False
    is_paused: bool = False

    def take(self, token: int, ending: set[int]) -> None:
        """Take in the next token as the device did: it ends the row, pauses it at a tool call, or neither."""
        self.tokens.append(token)
        self.is_finished = token in ending or len(self.tokens) == self.limit
        if self.tools is not None:
            self.tools.observe(token)
            self.is_paused = token == self.tools.control.python_end and not self.is_finished

    @property
    def num_left(self) -> int:
        """Tokens that may still come beyond the steps under way."""
        return 0 if self.is_finished else max(0, self.limit - len(self.tokens) - self.num_awaited)

    @property
    def is_in_tool_call(self) -> bool:
        return self.tools is not None and self.tools.block is not None


class DecodeLoop:
    """Rows waiting, rows in slots, and blocks of steps on their way.

    On CUDA the host reads a block while the next one runs. Since a row halts on the device by itself, what the host learns late
    costs idle steps of that row and nothing else.

    Args:
        ending: tokens that end a row.
    """

    def __init__(self, decoder: Decoder, rows: Sequence[Row], sampling: Sampling, ending: set[int]):
        self.decoder, self.sampling, self.ending = decoder, sampling, ending
        self.waiting = deque(rows)
        self.free = list(range(decoder.slots.num_slots))
        self.places: dict[int, Row] = {}
        self.blocks: deque[tuple[dict[int, Row], int, Callable[[], list[list[int]]]]] = deque()
        self.reader = TraceReader(decoder)
        # On a CPU there is nothing to wait for: the host looks after every step, and streams every token as it comes.
        is_cuda = decoder.slots.fields.device.type == "cuda"
        self.num_unread, self.steps_a_look, self.steps_a_launch = (1, STEPS_BETWEEN_LOOKS, STEPS_A_GRAPH) if is_cuda else (0, 1, 1)
        pausing = {row.tools.control.python_end for row in rows if row.tools is not None}
        decoder.slots.clear(ending | pausing)

    def run(self, look: Callable[[], None]) -> None:
        """Generate until every row has ended; `look` is called whenever rows have grown."""
        while self.waiting or self.places:
            self._fill_free_slots()
            num_steps = self._num_steps()
            if num_steps:
                self.decoder.step(self.sampling, num_steps)
                self.blocks.append((dict(self.places), num_steps, self.reader.read(num_steps)))
                for row in self.places.values():
                    row.num_awaited += num_steps
            if len(self.blocks) > self.num_unread or not num_steps:
                self._take_block(*self.blocks.popleft())
                look()

    def _fill_free_slots(self) -> None:
        if not self.waiting or (self.places and len(self.free) * SHARE_TO_REFILL < self.decoder.slots.num_slots):
            return
        num_rows = min(len(self.free), len(self.waiting))
        slots, rows = [self.free.pop(0) for _ in range(num_rows)], [self.waiting.popleft() for _ in range(num_rows)]
        self.decoder.start(slots, [row.prompt for row in rows], [len(row.prompt) + row.limit for row in rows])
        self.places |= dict(zip(slots, rows, strict=True))

    def _num_steps(self) -> int:
        """Return how many steps to launch: none that no row can use, and few while a tool call may end soon."""
        is_calling = any(row.is_in_tool_call for row in self.places.values())
        longest = max((row.num_left for row in self.places.values()), default=0)
        needed = -(-longest // self.steps_a_launch) * self.steps_a_launch
        return min(needed, self.steps_a_launch if is_calling else self.steps_a_look)

    def _take_block(self, places: dict[int, Row], num_steps: int, trace: Callable[[], list[list[int]]]) -> None:
        """Hand a block's tokens to its rows, free the slots of those that ended, and answer those that called a tool."""
        columns = list(zip(*trace(), strict=True))
        plans = {}
        for slot, row in places.items():
            row.num_awaited -= num_steps
            if row.is_finished:  # in an earlier block; this one ran on without it
                continue
            for token in columns[slot]:
                if token >= 0:
                    row.take(token, self.ending)
            if row.is_finished:
                del self.places[slot]
                self.free.append(slot)
            elif row.is_paused:
                row.is_paused = False
                plans[slot] = (len(row.prompt) + len(row.tokens), list(row.tools.forced))
        if plans:
            self.decoder.slots.resume(plans)


class TraceReader:
    """Copy the tokens of a block from the device, without waiting for it."""

    def __init__(self, decoder: Decoder):
        self.trace, self.num_steps = decoder.slots.trace, 0
        self.is_cuda = self.trace.device.type == "cuda"
        if self.is_cuda:  # two blocks are under way at most, a third buffer may still be read
            like = {"dtype": self.trace.dtype, "device": "cpu", "pin_memory": True}
            self.buffers = deque(torch.empty(self.trace.shape, **like) for _ in range(3))

    def read(self, num_steps: int) -> Callable[[], list[list[int]]]:
        """Start copying the last `num_steps` lines; the function returned waits for them, one list of slots each."""
        lines = [(self.num_steps + line) % TRACE_STEPS for line in range(num_steps)]
        self.num_steps += num_steps
        if not self.is_cuda:
            copy = self.trace[lines].tolist()
            return lambda: copy
        buffer, done = self.buffers[0], torch.cuda.Event()
        self.buffers.rotate(1)
        buffer.copy_(self.trace, non_blocking=True)
        done.record()

        def wait() -> list[list[int]]:
            done.synchronize()
            return buffer[lines].tolist()

        return wait


class ColumnStreamer:
    """Hand a streamer what transformers' loop would: one token of every row at a time, padding for rows that have ended."""

    def __init__(self, streamer: BaseStreamer | None, rows: Sequence[Row], pad: int):
        self.streamer, self.rows, self.pad, self.num_shown = streamer, rows, pad, 0

    def look(self) -> None:
        """Show every column that is complete."""
        if self.streamer is None:
            return
        longest = max(len(row.tokens) for row in self.rows)
        while self.num_shown < min((len(row.tokens) for row in self.rows if not row.is_finished), default=longest):
            place = self.num_shown
            self.streamer.put(torch.tensor([row.tokens[place] if place < len(row.tokens) else self.pad for row in self.rows]))
            self.num_shown += 1

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()


@torch.no_grad()
def decode_rows(
    model: GPTForCausalLM,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ending: set[int],
    sampling: Sampling,
    tokenizer: ChatTokenizer | None = None,
    max_rows: int | None = None,
    streamer: BaseStreamer | None = None,
    pad: int = 0,
) -> list[list[int]]:
    """Complete every prompt; rows that end give their slots to prompts that wait, in the order given.

    Args:
        ending: tokens that end a row.
        tokenizer: calls the calculator where a row asks for it; None calls nothing.
        max_rows: most rows to generate together.
        pad: what the streamer is shown of rows that have ended while others go on.

    Returns:
        The generated tokens of each prompt, the token that ended it included.
    """
    rows = [Row(prompt, max_new_tokens, tokenizer and ToolCallState(tokenizer)) for prompt in prompts]
    if rows and max_new_tokens > 0:
        columns = ColumnStreamer(streamer, rows, pad)
        capacity = max(map(len, prompts)) + max_new_tokens
        with borrow_decoder(model, _rows_together(len(rows), max_rows), capacity) as decoder:
            DecodeLoop(decoder, rows, sampling, ending).run(columns.look)
        columns.end()
    return [row.tokens for row in rows]


def _rows_together(num_rows: int, most: int | None) -> int:
    """Return how many rows to generate together, where there are more than that a power of two, as slots come.

    >>> _rows_together(100, None), _rows_together(20, 65), _rows_together(100, 65)
    (100, 20, 64)
    """
    return num_rows if most is None or num_rows <= most else 1 << most.bit_length() - 1
