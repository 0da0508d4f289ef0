"""The turns that a page shows: one message, an answer of each speaker."""

import html
import re
from typing import NamedTuple

from chatsft.dialogue.parts import answer_parts
from chatsft.dialogue.speaker import Speaker

JOINER = "\u2060"  # nobody sees it


class Turn(NamedTuple):
    """What was typed, and the ids each speaker answered with, as far as they have come."""

    message: str
    answers: tuple[list[int], ...]


def show_turns(turns: list[Turn], index: int, speaker: Speaker) -> list[dict]:
    """Write the dialogue with speaker `index` as messages of a gradio Chatbot; a tool call is a message of its own, under a title.

    A Chatbot takes content for HTML: all of it is written so that it shows as it is and nothing in it is loaded or run.
    """
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": mark(turn.message)})
        messages += show_answer(answer_parts(turn.answers[index], speaker.tokenizer))
    return messages


def show_answer(parts: list[dict]) -> list[dict]:
    """Write the parts of an answer as messages.

    >>> show_answer([{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}])
    [{'role': 'assistant', 'content': '1+1 = 2', 'metadata': {'title': 'calculator'}}]
    """
    messages = []
    for kind, text in ((part["type"], html.escape(part["text"], quote=False)) for part in parts):
        if kind == "python":
            messages.append({"role": "assistant", "content": text, "metadata": {"title": "calculator"}})
        elif kind == "python_output" and messages and "metadata" in messages[-1]:
            messages[-1]["content"] += f" = {text}"
        elif kind == "python_output":
            messages.append({"role": "assistant", "content": f"= {text}", "metadata": {"title": "calculator"}})
        else:
            messages.append({"role": "assistant", "content": text})
    return messages or [{"role": "assistant", "content": ""}]


def turn_of_message(messages: list[dict], index: int) -> int:
    """Return which turn message `index` of a shown dialogue belongs to.

    >>> turn_of_message([{"role": "user"}, {"role": "assistant"}, {"role": "assistant"}, {"role": "user"}], 2)
    0
    """
    return sum(message["role"] == "user" for message in messages[: index + 1]) - 1


def mark(text: str) -> str:
    """Break up what HTML would take for a tag or a character's name, in a way that an edit box does not show and `unmark` undoes.

    >>> len(mark("<b>")), mark("a < b & c"), unmark(mark("<b> &amp;"))
    (4, 'a < b & c', '<b> &amp;')
    """
    return re.sub(r"([<&])(?=[A-Za-z/!?#])", rf"\1{JOINER}", text)


def unmark(text: str) -> str:
    """Return a text that was marked to how it was typed."""
    return re.sub(f"([<&]){JOINER}", r"\1", text)
