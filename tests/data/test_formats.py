"""Layouts of conversations, read into messages."""

import pytest

from chatsft.data.formats import to_messages
from chatsft.model.tokenization_gpt import ConversationError

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
TURNS = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
FROM_TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CD = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
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
        ({"system": "s", "conversations": TURNS[1:]}, None, FROM_TURNS),
        ({"messages": None, "conversations": TURNS}, None, FROM_TURNS),
        ({"instruction": "a", "input": "", "output": "b"}, None, PAIR),
        ({"instruction": "do", "input": "it", "output": "b"}, None, [{"role": "user", "content": "do\n\nit"}, PAIR[1]]),
        ({"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}, None, [*FROM_TURNS, *CD]),
        ({"prompt": [PAIR[0]], "completion": [PAIR[1]]}, None, PAIR),
        ({"prompt": [*PAIR, CD[0]], "completion": "d"}, None, [*PAIR, *CD]),
        ([{"role": "developer", "content": "s"}, *PAIR], None, FROM_TURNS),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}, PAIR[1]], None, PAIR),
    ],
)
def test_every_layout_gives_messages(value, columns, messages):
    assert to_messages(value, columns).messages == messages


@pytest.mark.parametrize(
    "value, columns, message",
    [
        ({"txt": "a"}, None, "no conversation in an object with txt; expected"),
        ({"text": ""}, None, "the text is empty, expected a string to train on"),
        ({"text": ["a"]}, None, "the text is a list, expected a string to train on"),
        ({"body": "a"}, {"text": "text"}, "no column 'text' in an object with body"),
        ("a", None, "no conversation in a text; expected"),
        ({"chat": MESSAGES}, {"messages": "chats"}, "no column 'chats' in an object with chat"),
        ([], {"messages": "chat"}, "no column 'chat' in a list"),
        (
            [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f"}],
            None,
            r"turn 1 \(function_call\) is not JSON \(Expecting value: line 1 column 1 \(char 0\)\). Write {name, arguments}.",
        ),
        ([{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}], None, "turn 1 is from 'bot', expected human, gpt, system, fun"),
        (
            {"question": "a", "answer": "b"},
            None,
            "for its question and answer, add columns: {prompt: question, completion: answer} to",
        ),
        ({"instruction": "a", "output": "b", "history": ["a"]}, None, "history is not a list of"),
        ([{"from": "human"}], None, "turn 0 is an object with from, expected from and value"),
    ],
)
def test_anything_else_is_an_error(value, columns, message):
    with pytest.raises(ConversationError, match=message):
        to_messages(value, columns)


def test_the_layout_and_the_fields_left_over_are_named():
    mapped = to_messages({"messages": PAIR, "id": 1, "tools": [], "score": None})
    assert (mapped.layout, mapped.num_calls, mapped.unused) == ("messages", 0, ("id", "tools"))
    assert to_messages({"instruction": "a", "output": "b", "topic": "x"})[1:] == ("Alpaca fields", 0, ("topic",))
    assert to_messages({"prompt": "a", "completion": "b"}).layout == "prompt and completion"
    assert to_messages({"text": "a"}).layout == "raw text"


def test_messages_without_tools_stay_as_they_are():
    assert to_messages(MESSAGES).messages[1] is MESSAGES[1]
