"""A dialogue in the terminal: commands, answers as they come, and a history of what was typed."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from transformers.generation.streamers import BaseStreamer

from chatsft.dialogue.conversation import ChatError, Conversation
from chatsft.dialogue.speaker import AnswerSettings, Speaker
from chatsft.model.images import read_image
from chatsft.model.tokenization_gpt import GPTTokenizer

try:
    import readline
except ImportError:  # on Windows, where the console keeps a history by itself
    readline = None

HELP = """\
/reset           forget the conversation; the system text stays
/system TEXT     give the model a system text and start over; without TEXT there is none
/image FILE      show the model an image with the next message
/temperature T   0 is greedy; without T, say what it is
/quit            leave (Ctrl-D does too)"""
COMMANDS = [line.split()[0] for line in HELP.splitlines()]
KEPT_LINES = 1000


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
class TerminalChat:
    """A speaker, its settings and the conversation so far.

    Args:
        images: what the next message shows.
    """

    speaker: Speaker
    conversation: Conversation
    settings: AnswerSettings
    images: list[str] = field(default_factory=list)

    def answer(self, text: str) -> None:
        """Stream the answer to one message to stdout and remember the turn."""
        conversation, settings = self.conversation, self.settings
        message = [*({"type": "image", "url": url} for url in self.images), {"type": "text", "text": text}] if self.images else text
        num_dropped = conversation.drop_oldest_turns(message)
        if num_dropped:
            notice(f"The conversation is longer than the context: the oldest {num_dropped} turn(s) are forgotten.")
        answer = self.speaker.answer(conversation, message, settings, ConsoleStreamer(conversation.tokenizer, sys.stdout))
        conversation.turns.append((message, answer))
        self.images = []
        if len(answer) == settings.max_new_tokens:
            notice(f"The answer stopped at --max_new_tokens {settings.max_new_tokens}.")

    def run(self) -> None:
        """Read messages and commands from stdin until /quit or the end of the input."""
        print(HELP)
        with line_history():
            while (line := _read_line()) is not None:
                command, _, argument = line.strip().partition(" ")
                if command == "/quit":
                    return
                if command.startswith("/"):
                    notice(self.obey(command, argument.strip()))
                elif command:
                    self._answer_or_explain(line)

    def obey(self, command: str, argument: str) -> str:
        """Carry out a command and say what was done."""
        match command:
            case "/reset":
                self.conversation.turns.clear()
                self.images.clear()
                return "The conversation is forgotten."
            case "/system":
                self.conversation.system = argument
                self.conversation.turns.clear()
                return "The system text is set." if argument else "The system text is removed."
            case "/image":
                return self._show_image(argument)
            case "/temperature":
                return self._set_temperature(argument)
        return f"There is no command {command}.\n{HELP}"

    def _show_image(self, path: str) -> str:
        try:
            self.add_image(path)
        except ValueError as error:
            return str(error)
        return "The next message shows it."

    def add_image(self, path: str) -> None:
        """Let the next message show an image, or say why it cannot."""
        if not self.speaker.tokenizer.num_image_tokens:
            raise ChatError(f"{self.speaker.name} reads text only. Talk to a model that was trained with vision_model.")
        read_image(path)
        self.images.append(path)

    def _set_temperature(self, argument: str) -> str:
        try:
            temperature = float(argument or self.settings.temperature)
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature < float("inf"):
            return f"The temperature cannot be {argument}; write 0 (greedy) or a number above, as /temperature 0.7."
        self.settings = dataclasses.replace(self.settings, temperature=temperature)
        return f"The temperature is {temperature:g}."

    def _answer_or_explain(self, message: str) -> None:
        try:
            self.answer(message)
        except ChatError as error:
            notice(str(error))
        except KeyboardInterrupt:
            print()
            notice("Interrupted; the turn is forgotten.")


def _read_line() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


@contextmanager
def line_history() -> Iterator[None]:
    """Bring earlier lines back with the arrow keys, those of earlier chats too, and complete commands with Tab; in a terminal only."""
    if readline is None or not sys.stdin.isatty():
        yield
        return
    path = history_path()
    readline.parse_and_bind("tab: complete")
    readline.set_completer_delims(" ")
    readline.set_completer(_complete_command)
    readline.set_history_length(KEPT_LINES)
    try:
        readline.read_history_file(path)
    except OSError:  # the first chat, or a file of another library
        readline.clear_history()
    try:
        yield
    finally:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
        except OSError as error:
            notice(f"What you typed is not kept for the next chat: {error}")


def history_path() -> Path:
    """Return where typed lines are kept: the state folder of the XDG base directories."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "chatsft" / "chat_history"


def _complete_command(text: str, state: int) -> str | None:
    """Return the commands that begin with `text`, one for each `state`, then None.

    >>> _complete_command("/s", 0), _complete_command("/s", 1), _complete_command("s", 0)
    ('/system ', None, None)
    """
    found = [f"{command} " for command in COMMANDS if text.startswith("/") and command.startswith(text)]
    return found[state] if state < len(found) else None


def notice(text: str) -> None:
    """Tell the person at the terminal something that is no part of the dialogue."""
    print(text, file=sys.stderr, flush=True)
