"""Answers in the terminal as they come, commands, and the history of typed lines."""

import io
import os
import pty
import select
import subprocess
import sys
import time

import pytest
import torch

from chatsft.dialogue.conversation import Conversation
from chatsft.dialogue.speaker import AnswerSettings
from chatsft.dialogue.terminal import ConsoleStreamer, TerminalChat, history_path
from tests.dialogue.models import GEN_MODEL, QUESTION, TOKENIZER


class Recorder(io.StringIO):
    """Keep what each write wrote."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, text: str) -> int:
        self.writes += [text] if text else []
        return super().write(text)


def stream(tokenizer, ids: list[int]) -> list[str]:
    output = Recorder()
    streamer = ConsoleStreamer(tokenizer, output)
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return output.writes


def test_tokens_are_written_as_they_come(tokenizer):
    ids = tokenizer.encode_ordinary("one two three")
    assert stream(tokenizer, ids) == [*[tokenizer.decode([token]) for token in ids], "\n"]


def test_a_character_of_several_tokens_is_written_whole(tokenizer):
    ids = tokenizer.encode_ordinary("a🦄b")
    assert len(ids) > 3
    assert stream(tokenizer, ids) == ["a", "🦄", "b", "\n"]


def test_bytes_that_are_no_character_are_written_too(tokenizer):
    broken = tokenizer.encode_ordinary("🦄")[:1]
    assert "".join(stream(tokenizer, broken * 5 + tokenizer.encode_ordinary("x"))).endswith("x\n")
    assert stream(tokenizer, broken) == ["\ufffd", "\n"]


def test_a_conversation_beyond_the_context_forgets_its_oldest_turns(speaker, capsys):
    settings = AnswerSettings(temperature=0.0, max_new_tokens=2)
    conversation = Conversation(speaker.tokenizer, max_tokens=60, system="S")
    conversation.turns = [("first", [7] * 30), ("second", [7] * 30), ("third", [7])]
    TerminalChat(speaker, conversation, settings).answer("fourth")
    assert [text for text, _ in conversation.turns] == ["second", "third", "fourth"]
    assert "the oldest 1 turn(s) are forgotten" in capsys.readouterr().err
    assert speaker.tokenizer.decode(conversation.prompt("x")).startswith("<|bos|><|user_start|>S\n\nsecond")


def test_the_history_is_kept_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "chatsft" / "chat_history"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert history_path() == tmp_path / "me" / ".local" / "state" / "chatsft" / "chat_history"


class Terminal:
    """A chat in a terminal of its own, to type into and to read."""

    def __init__(self, tmp_path):
        self.text = ""
        self.screen, inside = pty.openpty()
        command = [sys.executable, "-m", "chatsft.chat", str(GEN_MODEL), "--tokenizer_path", str(TOKENIZER), "--temperature", "0"]
        environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True)
        os.close(inside)

    def read_until(self, wanted: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert select.select([self.screen], [], [], max(0, end - time.monotonic()))[0], f"{wanted!r} did not come; {self.text!r} did"
            self.text += os.read(self.screen, 4096).decode(errors="replace")
        self.text = self.text.partition(wanted)[2]

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def leave(self) -> int:
        self.type("\x04")
        code = self.process.wait(timeout=60)
        os.close(self.screen)
        return code


@pytest.mark.slow
def test_the_arrow_key_brings_back_lines_of_this_chat_and_the_last_and_tab_completes(tmp_path):
    first = Terminal(tmp_path)
    first.read_until("> ")
    first.type(QUESTION + "\n")
    first.read_until("[calculator: 9-13][result: -4]")
    first.read_until("> ")
    assert first.leave() == 0
    second = Terminal(tmp_path)
    second.read_until("> ")
    second.type("/tem\t0.5\n")
    second.read_until("The temperature is 0.5.")
    second.read_until("> ")
    second.type("\x1b[A\x1b[A\n")
    second.read_until("[result: ")
    second.read_until("> ")
    assert second.leave() == 0
    lines = (tmp_path / "chatsft" / "chat_history").read_text().splitlines()
    assert lines[-3:] == [QUESTION, "/temperature 0.5", QUESTION]
