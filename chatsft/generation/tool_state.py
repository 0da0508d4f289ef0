"""Follow the tool calls of one generated row: which block is open, and which tokens are forced next.

Knows ids and nothing of tensors, so that any generation loop can drive it.
"""

from collections import deque
from dataclasses import dataclass, fields
from typing import Protocol, Self

from chatsft.generation.calculator import format_result, use_calculator


class ChatTokenizer(Protocol):
    """What tool use needs of a tokenizer; GPTTokenizer has it."""

    pad_token_id: int | None

    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


@dataclass(frozen=True)
class ControlTokens:
    """The ids that open, close and end things in a generated row."""

    bos: int
    assistant_end: int
    python_start: int
    python_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> Self:
        names = [field.name for field in fields(cls)]
        ids = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]
        missing = [f"<|{name}|>" for name, token in zip(names, ids, strict=True) if token is None]
        if missing:
            raise ValueError(f"The tokenizer has no {', '.join(missing)}. Tool use needs a tokenizer made by chatsft.convert.")
        return cls(*ids)

    @property
    def terminal(self) -> tuple[int, int]:
        """The tokens that end a row, inside a python block as well."""
        return self.assistant_end, self.bos


def sampled_mask(completion: list[int], tokenizer: ChatTokenizer) -> list[int]:
    """Mark the tokens of a completion with 1 where the model chose them and with 0 where a tool's result was forced on it."""
    state, mask = ToolCallState(tokenizer), []
    for token in completion:
        mask.append(int(not state.forced))
        state.observe(token)
    return mask


class ToolCallState:
    """The tool-call state of one row, as nanochat's engine keeps it.

    Call `observe` with every generated token, forced ones included. While `forced` is not empty, its first token is the one that
    has to come next. The prompt is not observed: a python block left open there calls nothing.
    """

    def __init__(self, tokenizer: ChatTokenizer):
        self.tokenizer = tokenizer
        self.control = ControlTokens.of(tokenizer)
        self.forced: deque[int] = deque()
        self.block: list[int] | None = None  # tokens of the open python block
        self.is_finished = False
        self.last_token: int | None = None

    def observe(self, token: int) -> None:
        """Take in the token that was generated next; whatever follows the end of the row is padding and ignored."""
        self.last_token = token
        if self.is_finished:
            return
        if self.forced:
            self.forced.popleft()
        if token in self.control.terminal:
            self.is_finished = True
        elif token == self.control.python_start:
            self.block = []
        elif token == self.control.python_end:
            self._close_block()
        elif self.block is not None:
            self.block.append(token)

    def _close_block(self) -> None:
        """Queue the result of the block that ends here; an empty, unopened or meaningless one queues nothing."""
        result = use_calculator(self.tokenizer.decode(self.block)) if self.block else None
        self.block = None
        if result is not None:
            output = self.tokenizer.encode_ordinary(format_result(result))
            self.forced.extend([self.control.output_start, *output, self.control.output_end])
