"""Chat with a model in the terminal.

chatsft chat CHECKPOINT
chatsft chat CHECKPOINT --prompt "How many r are in strawberry?" --temperature 0
"""

import argparse
import sys
from dataclasses import dataclass, field
from typing import TextIO

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from chatsft.generation.penalties import add_penalties, check_penalties
from chatsft.generation.tool_use import generate_completions, max_prompt_tokens
from chatsft.model.loading import load_chat_model
from chatsft.model.tokenization_gpt import GPTTokenizer

HELP = """\
/reset         forget the conversation; the system text stays
/system TEXT   give the model a system text and start over; without TEXT there is none
/quit          leave (Ctrl-D does too)"""


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


class ConsoleStreamer(BaseStreamer):
    """Write tokens as text as soon as they make whole characters, and show tool calls as they run."""

    def __init__(self, tokenizer: GPTTokenizer, output: TextIO):
        self.tokenizer = tokenizer
        self.output = output
        self.pending: list[int] = []
        self.is_prompt = True  # generate() hands over the prompt first
        shown = {"python_start": "[calculator: ", "python_end": "]", "output_start": "[result: ", "output_end": "]"}
        shown |= {"assistant_end": "", "bos": ""}
        self.shown = {tokenizer.convert_tokens_to_ids(f"<|{name}|>"): text for name, text in shown.items()}

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        for token in value.flatten().tolist():
            self._show(token)

    def end(self) -> None:
        self._write_pending()
        print(file=self.output, flush=True)

    def _show(self, token: int) -> None:
        if token in self.shown:
            self._write_pending()
            print(self.shown[token], end="", file=self.output, flush=True)
            return
        self.pending.append(token)
        # A character is at most four bytes, so at most four tokens.
        if len(self.pending) == 4 or not self.tokenizer.decode(self.pending).endswith("\ufffd"):
            self._write_pending()

    def _write_pending(self) -> None:
        print(self.tokenizer.decode(self.pending), end="", file=self.output, flush=True)
        self.pending = []


@dataclass
class Chat:
    """A model, its sampling settings and the conversation so far."""

    model: PreTrainedModel
    conversation: Conversation
    options: argparse.Namespace

    def answer(self, message: str) -> None:
        """Stream the answer to one message to stdout and remember the turn."""
        conversation, options = self.conversation, self.options
        num_dropped = conversation.drop_oldest_turns(message)
        if num_dropped:
            _notice(f"The conversation is longer than the context: the oldest {num_dropped} turn(s) are forgotten.")
        [[answer]] = generate_completions(
            self.model,
            conversation.tokenizer,
            [conversation.prompt(message)],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=None if options.seed is None else options.seed + len(conversation.turns),
            streamer=ConsoleStreamer(conversation.tokenizer, sys.stdout),
            repetition_penalty=options.repetition_penalty,
            exponential_decay_length_penalty=options.exponential_decay_length_penalty,
        )
        conversation.turns.append((message, answer))
        if len(answer) == options.max_new_tokens:
            _notice(f"The answer stopped at --max_new_tokens {options.max_new_tokens}.")

    def run(self) -> None:
        """Read messages and commands from stdin until /quit or the end of the input."""
        print(HELP)
        while (line := _read_line()) is not None:
            command, _, argument = line.strip().partition(" ")
            match command:
                case "/quit":
                    return
                case "/reset":
                    self.conversation.turns.clear()
                    _notice("The conversation is forgotten.")
                case "/system":
                    self.conversation.system = argument.strip()
                    self.conversation.turns.clear()
                    _notice("The system text is set." if argument.strip() else "The system text is removed.")
                case "":
                    continue
                case _ if command.startswith("/"):
                    _notice(f"There is no command {command}.\n{HELP}")
                case _:
                    self._answer_or_explain(line)

    def _answer_or_explain(self, message: str) -> None:
        try:
            self.answer(message)
        except ChatError as error:
            _notice(str(error))
        except KeyboardInterrupt:
            print()
            _notice("Interrupted; the turn is forgotten.")


def _read_line() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chatsft chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder written by save_pretrained, Hub id, or nanochat checkpoint folder")
    parser.add_argument("--tokenizer_path", help="another tokenizer; for a nanochat checkpoint the folder of tokenizer.pkl")
    parser.add_argument("--prompt", help="answer this once, to stdout, and exit")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system text, put in front of the first message")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top_k", type=int, default=50, help="sample among the most likely tokens, 0 is all (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    add_penalties(parser)
    parser.add_argument("--seed", type=int, help="make the answers repeatable")
    parser.add_argument("--device", type=_usable_device, default=_default_device(), help="default: %(default)s")
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.temperature < 0 or options.top_k < 0 or options.max_new_tokens < 1:
        parser.error("--temperature and --top_k may be 0 or more, --max_new_tokens 1 or more")
    check_penalties(parser, options)
    return options


def _default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _usable_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name} is not usable here: {error}") from error


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    disable_progress_bar()
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    try:
        model, tokenizer = load_chat_model(options.checkpoint, options.tokenizer_path, device=options.device, dtype=dtype)
        conversation = Conversation(tokenizer, max_prompt_tokens(model.config, options.max_new_tokens), options.system)
        chat = Chat(model, conversation, options)
        if options.prompt is None:
            chat.run()
        else:
            chat.answer(options.prompt)
    except (ValueError, OSError) as error:
        _notice(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
