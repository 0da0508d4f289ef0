"""Layouts of conversations, read into messages."""

import pytest

from chatsft.data.formats import to_messages
from chatsft.model.tokenization_gpt import ConversationError

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
TURNS = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
FROM_TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "value, columns, messages",
    [
        ({"messages": MESSAGES, "source": "x"}, None, MESSAGES),
        (MESSAGES, None, MESSAGES),
        ({"conversations": TURNS}, None, FROM_TURNS),
        (TURNS, None, FROM_TURNS),
        ({"prompt": "a", "completion": "b"}, None, PAIR),
        ({"question": "a", "answer": "b"}, {"prompt": "question", "completion": "answer"}, PAIR),
        ({"chat": MESSAGES}, {"messages": "chat"}, MESSAGES),
        ({"chat": TURNS}, {"messages": "chat"}, FROM_TURNS),
        ({"text": "Once.", "url": "x"}, None, "Once."),
        ({"body": "Once.", "text": "not this"}, {"text": "body"}, "Once."),
        ({"messages": MESSAGES, "text": "a"}, None, MESSAGES),
    ],
)
def test_every_layout_gives_messages(value, columns, messages):
    assert to_messages(value, columns) == messages


@pytest.mark.parametrize(
    "value, columns, message",
    [
        ({"txt": "a"}, None, "no conversation in an object with txt; expected"),
        ({"text": ""}, None, "the text is empty, expected a string to train on"),
        ({"text": ["a"]}, None, "the text is a list, expected a string to train on"),
        ({"body": "a"}, {"text": "text"}, "no column 'text' in an object with body"),
        ("a", None, "no conversation in a str; expected"),
        ({"chat": MESSAGES}, {"messages": "chats"}, "no column 'chats' in an object with chat"),
        ([], {"messages": "chat"}, "no column 'chat' in a list"),
        (
            [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f"}],
            None,
            "turn 1 is from 'function_call', expected human",
        ),
        ([{"from": "human"}], None, "turn 0 is an object with from, expected from and value"),
    ],
)
def test_anything_else_is_an_error(value, columns, message):
    with pytest.raises(ConversationError, match=message):
        to_messages(value, columns)
