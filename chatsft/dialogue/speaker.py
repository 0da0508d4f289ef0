"""A model that answers, and how it is asked to."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue

import torch
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from chatsft.dialogue.conversation import Conversation, Message
from chatsft.generation.tool_use import generate_completions, max_prompt_tokens
from chatsft.model.processing_gpt import read_pixels
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.model.vision import load_processor


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are drawn; a seed makes each turn's answer repeatable."""

    temperature: float = 0.6
    top_k: int = 50
    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    exponential_decay_length_penalty: tuple[int, float] | None = None
    seed: int | None = None


@dataclass
class Speaker:
    """A model with its tokenizer and the name people know it by."""

    name: str
    model: PreTrainedModel
    tokenizer: GPTTokenizer

    def start(self, settings: AnswerSettings, system: str = "", turns: list[tuple[str, list[int]]] | None = None) -> Conversation:
        """Begin a conversation that leaves room for answers, with the turns there were."""
        room = max_prompt_tokens(self.model.config, settings.max_new_tokens)
        return Conversation(self.tokenizer, room, system, turns or [])

    def answer(self, conversation: Conversation, message: Message, settings: AnswerSettings, streamer: BaseStreamer) -> list[int]:
        """Return the ids of the answer to `message`, showing them to `streamer` as they come; the turn is not added."""
        options = vars(settings) | {"seed": None if settings.seed is None else settings.seed + len(conversation.turns)}
        if urls := conversation.images(message):
            options["pixel_values"] = read_pixels(urls, self._image_processor)
        [[answer]] = generate_completions(self.model, self.tokenizer, [conversation.prompt(message)], streamer=streamer, **options)
        return answer

    @cached_property
    def _image_processor(self) -> BaseImageProcessor:
        return load_processor(self.tokenizer, self.name).image_processor


class StoppedError(Exception):
    """Nobody reads the answer any more."""


class QueueStreamer(BaseStreamer):
    """Hand tokens from the thread that generates to the one that reads; once stopped, end the generation at its next token."""

    def __init__(self):
        self.tokens: SimpleQueue[int | Exception | None] = SimpleQueue()
        self.is_stopped = threading.Event()
        self.is_prompt = True  # generate() hands over the prompt first

    def put(self, value: torch.Tensor) -> None:
        if self.is_stopped.is_set():
            raise StoppedError
        for token in [] if self.is_prompt else value.flatten().tolist():
            self.tokens.put(token)
        self.is_prompt = False

    def end(self) -> None:
        pass


def stream_tokens(generate: Callable[[BaseStreamer], object]) -> Iterator[int]:
    """Yield the tokens of `generate(streamer)` as they come, with the one that ends the answer.

    Closing the iterator ends the generation, and returns when it has ended; an error of the generation is raised here.
    """
    streamer = QueueStreamer()

    def run() -> None:
        try:
            generate(streamer)
        except StoppedError:
            pass
        except Exception as error:
            streamer.tokens.put(error)
        finally:
            streamer.tokens.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (token := streamer.tokens.get()) is not None:
            if isinstance(token, Exception):
                raise token
            yield token
    finally:
        streamer.is_stopped.set()
        thread.join()
