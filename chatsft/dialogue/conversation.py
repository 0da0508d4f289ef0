"""The turns of a dialogue and the prompt that asks for the next one."""

from dataclasses import dataclass, field

from chatsft.model.conversation import image_urls
from chatsft.model.tokenization_gpt import GPTTokenizer

Message = str | list[dict]
"""What a user says: a text, or parts with images."""


class ChatError(ValueError):
    """A message that cannot be answered, with what to do about it."""


@dataclass
class Conversation:
    """The turns of a chat as (what the user said, token ids of the answer), oldest first.

    Answers are kept as the model wrote them, because encoding their text again can give other tokens. What the user typed is encoded as
    ordinary text: a control token spelled out in it stays text.
    """

    tokenizer: GPTTokenizer
    max_tokens: int
    system: str = ""
    turns: list[tuple[Message, list[int]]] = field(default_factory=list)

    def prompt(self, message: Message) -> list[int]:
        """Return the ids that ask for an answer to `message`."""
        token = self.tokenizer.convert_tokens_to_ids
        ids = [token("<|bos|>")]
        for index, (content, answer) in enumerate([*self.turns, (message, [])]):
            system = [{"role": "system", "content": self.system}] if self.system and index == 0 else []
            question, _ = self.tokenizer.render_conversation({"messages": [*system, {"role": "user", "content": content}]}, max_tokens=None)
            ids += [*question[1:], token("<|assistant_start|>")]
            if index < len(self.turns):
                ids += [*answer, token("<|assistant_end|>")]
        return ids

    def images(self, message: Message) -> list[str]:
        """List the images that the prompt for `message` shows."""
        return image_urls([{"content": content} for content, _ in [*self.turns, (message, [])]])

    def drop_oldest_turns(self, message: Message) -> int:
        """Forget turns until the prompt for `message` fits; return how many."""
        num_turns = len(self.turns)
        while len(self.prompt(message)) > self.max_tokens:
            if not self.turns:
                num_tokens = len(self.prompt(message))
                raise ChatError(f"The message takes {num_tokens} tokens and the context has room for {self.max_tokens}. Shorten it.")
            del self.turns[0]
        return num_turns - len(self.turns)
