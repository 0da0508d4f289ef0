"""The turns of a dialogue and the prompt that asks for the next one."""

from dataclasses import dataclass, field

from chatsft.model.tokenization_gpt import GPTTokenizer


class ChatError(ValueError):
    """A message that cannot be answered, with what to do about it."""


@dataclass
class Conversation:
    """The turns of a chat as (what the user typed, token ids of the answer), oldest first.

    Answers are kept as the model wrote them, because encoding their text again can give other tokens. What the user typed is encoded as
    ordinary text: a control token spelled out in it stays text.
    """

    tokenizer: GPTTokenizer
    max_tokens: int
    system: str = ""
    turns: list[tuple[str, list[int]]] = field(default_factory=list)

    def prompt(self, message: str) -> list[int]:
        """Return the ids that ask for an answer to `message`."""
        token = self.tokenizer.convert_tokens_to_ids
        ids = [token("<|bos|>")]
        for index, (text, answer) in enumerate([*self.turns, (message, [])]):
            text = f"{self.system}\n\n{text}" if self.system and index == 0 else text
            ids += [token("<|user_start|>"), *self.tokenizer.encode_ordinary(text), token("<|user_end|>"), token("<|assistant_start|>")]
            if index < len(self.turns):
                ids += [*answer, token("<|assistant_end|>")]
        return ids

    def drop_oldest_turns(self, message: str) -> int:
        """Forget turns until the prompt for `message` fits; return how many."""
        num_turns = len(self.turns)
        while len(self.prompt(message)) > self.max_tokens:
            if not self.turns:
                num_tokens = len(self.prompt(message))
                raise ChatError(f"The message takes {num_tokens} tokens and the context has room for {self.max_tokens}. Shorten it.")
            del self.turns[0]
        return num_turns - len(self.turns)
