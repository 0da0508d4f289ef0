"""Tool calls of other layouts, folded into the assistant's message."""

import json

import pytest

from chatsft.data.formats import to_messages
from chatsft.model.conversation import check_conversation
from chatsft.model.tokenization_gpt import ConversationError


def call(name: str, arguments: object, call_id: str | None = None) -> dict:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def asks(content: str = "?") -> dict:
    return {"role": "user", "content": content}


def calls(*tool_calls: dict, content: str | None = None) -> dict:
    return {"role": "assistant", "content": content, "tool_calls": list(tool_calls)}


def result(content: object, call_id: str | None = None) -> dict:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def parts(messages: list) -> list[list[tuple[str, str]]]:
    """The parts of each assistant message."""
    read = check_conversation({"messages": to_messages(messages).messages})
    return [[(part["type"], part["text"]) for part in message["content"]] for message in read if message["role"] == "assistant"]


def test_openai_calls_their_results_and_the_answer_are_one_message():
    messages = [
        asks(),
        calls(call("get_weather", '{"city": "Oslo"}', "a"), call("calculator", '{"expression": "2*3"}', "b"), content="Let me see."),
        result("6", "b"),
        result("4 degrees", "a"),
        says("It is cold."),
        asks("thanks"),
        says("You are welcome."),
    ]
    read = to_messages({"messages": messages, "tools": [{}]})
    assert read.num_calls == 2
    assert [message["role"] for message in read.messages] == ["user", "assistant"] * 2
    assert parts(messages[:5]) == [
        [
            ("text", "Let me see."),
            ("python", "get_weather(city='Oslo')"),
            ("python_output", "4 degrees"),
            ("python", "2*3"),
            ("python_output", "6"),
            ("text", "It is cold."),
        ]
    ]
    assert read.messages[3] == says("You are welcome.")


def test_several_rounds_of_calls_are_one_turn_of_the_assistant():
    messages = [asks(), calls(call("f", {"x": 1}, "a")), result("1", "a"), calls(call("f", {"x": 2}, "b")), result("2", "b"), says("Done.")]
    assert [text for _, text in parts(messages)[0]] == ["f(x=1)", "1", "f(x=2)", "2", "Done."]


def test_the_older_function_call_and_sharegpts_turns_read_the_same():
    older = [
        asks(),
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"x": [1, null]}'}},
        {"role": "function", "name": "f", "content": "1"},
        says("One."),
    ]
    sharegpt = [
        {"from": "human", "value": "?"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": [1, null]}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "One."},
    ]
    assert parts(older) == parts(sharegpt) == [[("python", "f(x=[1, None])"), ("python_output", "1"), ("text", "One.")]]


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("calculator", '{"expression": "9-13"}', "9-13"),
        ("python", "print(1)", "print(1)"),
        ("python", {"code": "x = 1\nx"}, "x = 1\nx"),
        ("python", {"code": "x", "timeout": 3}, "python(code='x', timeout=3)"),
        ("search", {"q": 'a"b', "n": 2, "filled_in": None}, "search(q='a\"b', n=2)"),
        ("search", {"max-results": 2}, "search(**{'max-results': 2})"),
        ("now", None, "now()"),
        ("now", "{}", "now()"),
    ],
)
def test_a_call_is_written_as_python(name, arguments, written):
    assert parts([asks(), calls(call(name, arguments))]) == [[("python", written)]]


@pytest.mark.parametrize(
    ("content", "written"),
    [("6", "6"), ([{"type": "text", "text": "6"}], "6"), ({"value": 6}, json.dumps({"value": 6})), (None, ""), (6, "6")],
)
def test_a_result_is_written_as_text(content, written):
    assert parts([asks(), calls(call("f", "{}")), result(content)])[0][1] == ("python_output", written)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([asks(), calls(call("f", "{}", "a")), result("1", "b")], r"message 2 \(tool\) is the result of call 'b', but .* are 'a'."),
        (
            [asks(), calls(call("f", "{}", "a")), result("1", "a"), result("2")],
            r"message 3 \(tool\) is the result of a call, but .* none",
        ),
        (
            [asks(), calls(call("f", "{}")), asks(), says("x")],
            r"message 1 calls f\(\) and has no result. Put a message with role tool",
        ),
        ([asks(), calls(call("f", "{}")), says("x")], r"message 1 calls f\(\) and has no result"),
        ([asks(), calls(call("f", "{"))], r"message 1 calls f with arguments that are not JSON \(.*\). Correct them."),
        ([asks(), calls(call("f", "[1]"))], "message 1 calls f with arguments of type list, expected an object"),
        ([asks(), calls({"function": {}})], "message 1 has a tool call without a function name"),
        (
            [asks(), {"role": "assistant", "content": 3, "tool_calls": [call("f", "{}")]}],
            r"message 1 \(assistant\) has content of type",
        ),
        ([asks(), {"role": "assistant", "content": None, "tool_calls": 3}], "message 1 has a tool call of type int, expected an object"),
    ],
)
def test_calls_that_cannot_be_meant_are_errors(messages, problem):
    with pytest.raises(ConversationError, match=problem):
        to_messages(messages)
