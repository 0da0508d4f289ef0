"""SmolTalk and CustomJSON: conversations taken as they are."""

import json
import re

import pytest

from chatsft.model.tokenization_gpt import ConversationError
from chatsft.tasks import CustomJSON, SmolTalk
from tests.tasks.fixtures import FIXTURES, in_file_order, load_fixture, write_lines


def test_smoltalk_conversations_are_the_recorded_ones(tmp_path):
    good = [case for case in load_fixture("smoltalk.json") if "conversation" in case]
    write_lines(tmp_path / "smoltalk" / "train.jsonl", [case["row"] for case in good])
    assert in_file_order(SmolTalk("train", data_root=tmp_path)) == [case["conversation"] for case in good]


def test_customjson_reads_the_recorded_file():
    recorded = load_fixture("customjson.json")
    task = CustomJSON(FIXTURES / "customjson_example.jsonl")
    assert len(task) == recorded["len"]
    assert task[0] == recorded["first"]


@pytest.mark.parametrize(
    "name, message", [("dict", "a dict"), ("one", "no assistant message"), ("no_content", "message 0"), ("system_first", "no assistant")]
)
def test_customjson_refuses_what_nanochat_refused(tmp_path, name, message):
    line = next(case["line"] for case in load_fixture("customjson.json")["invalid"] if case["name"] == name)
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_lines(tmp_path / "chat.jsonl", [good, line])
    with pytest.raises(ConversationError, match=re.escape(f"{path}:2: ") + f".*{message}"):
        CustomJSON(path)


def test_customjson_takes_parts_and_system_messages_which_nanochat_refused(tmp_path):
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    line = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]
    assert CustomJSON(write_lines(tmp_path / "chat.jsonl", [line]))[0] == {"messages": line}


def test_customjson_without_its_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("nowhere.jsonl is not there")):
        CustomJSON(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    "text, message",
    [
        (b"[1, 2", ":1: not JSON"),
        (b"\n\n\xff\n", ":3: byte 0 is not UTF-8"),
        (b"[" * 100_000, ":1: JSON nested too deeply"),
    ],
)
def test_a_line_that_is_not_json_is_an_error_with_its_number(tmp_path, text, message):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        CustomJSON(path)


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_no_trouble(tmp_path):
    line = [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "é"}]
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line, ensure_ascii=False).encode() + b"\r\n\r\n" + json.dumps(line).encode())
    assert [conversation["messages"] for conversation in CustomJSON(path)] == [line, line]
