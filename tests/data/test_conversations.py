"""Files and folders of conversations, and errors that name the line."""

import json
import re

import datasets
import pytest

from chatsft.data.mixture import load_mixture
from chatsft.model.tokenization_gpt import ConversationError
from tests.tasks.fixtures import FIXTURES, write_lines

PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PARTS = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": [{"type": "python", "text": "1+1"}]}]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def load(path, **entry) -> list:
    return load_mixture([{"path": str(path), **entry}], order="sequence")["messages"][:]


def test_a_jsonl_file_may_mix_layouts_and_blank_lines(tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    lines = [json.dumps({"messages": PARTS}), "", json.dumps(PAIR), json.dumps({"conversations": turns}), "  "]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    rows = load_mixture([{"path": "chat.jsonl"}], order="sequence")
    assert rows["messages"][:] == [PARTS, PAIR, PAIR]
    assert rows["source"][:] == ["chat.jsonl"] * 3
    assert [origin.rpartition("/")[2] for origin in rows["origin"]] == ["chat.jsonl:1", "chat.jsonl:3", "chat.jsonl:4"]


def test_nanochats_example_file_is_read():
    rows = load(FIXTURES / "customjson_example.jsonl")
    assert len(rows) == 40
    assert rows[0] == json.loads((FIXTURES / "customjson.json").read_text())["first"]["messages"]


@pytest.mark.parametrize(
    "text, expected",
    [
        (json.dumps([PARTS, {"messages": PAIR}], indent=2), [PARTS, PAIR]),
        (json.dumps(PARTS), [PARTS]),
        (json.dumps(PARTS) + "\n" + json.dumps(PAIR), [PARTS, PAIR]),
        (json.dumps({"messages": PARTS}), [PARTS]),
        ("\ufeff" + json.dumps([{"messages": PAIR}]), [PAIR]),
    ],
    ids=["array", "one conversation", "arrays in lines", "objects in lines", "byte order mark"],
)
def test_a_json_file_is_one_array_or_lines(tmp_path, text, expected):
    (tmp_path / "chat.json").write_text(text, encoding="utf-8")
    assert load("chat.json") == expected


def test_an_array_over_several_lines_is_read_whatever_the_file_is_called(tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps([{"messages": PARTS}, PAIR], indent=2))
    assert load("chat.jsonl") == [PARTS, PAIR]


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.json"])
def test_an_object_over_several_lines_is_one_error(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"messages": PAIR}, indent=2))
    with pytest.raises(ConversationError, match=rf"^{name}:1: one object over several lines. Write each conversation on one line,"):
        load(name)


def test_a_table_that_cannot_be_read_is_an_error_with_its_name(tmp_path):
    for name in ("chat.csv", "chat.parquet"):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=rf"^{name} cannot be read as (csv|parquet) \(.+\). Correct the file, or write it anew.$"):
            load(name)


def test_parquet_csv_and_folders_are_read(tmp_path):
    rows = datasets.Dataset.from_list([{"messages": PAIR}])
    rows.to_parquet(tmp_path / "chat.parquet")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "saved_dict")
    (tmp_path / "chat.csv").write_text("question,answer\na,b\n")
    write_lines(tmp_path / "folder" / "train.jsonl", [{"messages": PAIR}])
    assert load("chat.parquet") == load("saved") == load("saved_dict") == load("folder") == [PAIR]
    assert load("chat.csv", columns={"prompt": "question", "completion": "answer"}) == [PAIR]


def test_half_characters_become_the_replacement_character(tmp_path):
    (tmp_path / "chat.jsonl").write_text(r'[{"role":"user","content":"\ud83d \ud83d\ude00"},{"role":"assistant","content":"b"}]')
    assert load("chat.jsonl")[0][0]["content"] == "\ufffd \U0001f600"


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON (Expecting property name"),
        ("[]", "there is no user message"),
        ("3", "no conversation in a int"),
        ('{"txt": "a"}', "no conversation in an object with txt"),
        ('{"messages": "Hi"}', "messages is a text, expected a list of {role, content}. Raw text goes under text."),
        (json.dumps({"messages": json.dumps(PAIR)}), "messages is a text, expected a list of {role, content}. They are JSON in quotes:"),
        (
            json.dumps([*PAIR, {"role": "tool", "content": "x"}]),
            "message 2 has role 'tool', expected 'user'. Put tool output in a python_output part.",
        ),
        (json.dumps([{"role": "assistant", "content": "x"}]), "message 0 has role 'assistant', expected 'user'"),
        (json.dumps([{"role": "user"}]), "message 0 (user) has content of None (or missing)"),
        (json.dumps([{"role": "user", "content": "x"}]), "no assistant message, so there is nothing to learn"),
        ('{"conversations": [{"from": "observation", "value": "x"}]}', "message 0 has role 'tool', expected 'user'"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number_even_if_unused(tmp_path, line, message):
    (tmp_path / "chat.jsonl").write_text(f"{json.dumps(PAIR)}\n{line}\n{json.dumps(PAIR)}\n")
    with pytest.raises(ValueError, match="^" + re.escape(f"chat.jsonl:2: {message}")):
        load("chat.jsonl", stop=1)


def test_a_broken_array_names_its_line(tmp_path):
    (tmp_path / "chat.json").write_text('[\n  [{"role": "user" "content"}]\n]')
    with pytest.raises(ValueError, match=re.escape("chat.json:2: not JSON (Expecting ',' delimiter")):
        load("chat.json")
    (tmp_path / "chat.json").write_text(json.dumps([PAIR, [PAIR[1]]]))
    with pytest.raises(ConversationError, match=re.escape("chat.json:1[1]: message 0 has role 'assistant'")):
        load("chat.json")


def test_a_row_without_the_column_is_an_error(tmp_path):
    (tmp_path / "chat.csv").write_text("question,answer\na,b\n")
    with pytest.raises(ConversationError, match=re.escape("chat.csv[0]: no column 'reply' in an object with question, answer")):
        load("chat.csv", columns={"prompt": "question", "completion": "reply"})


def test_paths_are_looked_up_in_each_folder_and_then_in_data_root(tmp_path):
    for name in ("second", "root"):
        write_lines(tmp_path / name / "chat.jsonl", [PAIR])
    places = {"folders": [tmp_path / "first", tmp_path / "second"], "data_root": tmp_path / "root"}
    assert load_mixture([{"path": "chat.jsonl"}], **places)[0]["origin"] == f"{tmp_path}/second/chat.jsonl:1"
    (tmp_path / "second" / "chat.jsonl").unlink()
    assert load_mixture([{"path": "chat.jsonl"}], **places)[0]["origin"] == f"{tmp_path}/root/chat.jsonl:1"
    (tmp_path / "root" / "chat.jsonl").unlink()
    looked_in = ", ".join(f"{tmp_path}/{name}/chat.jsonl" for name in ("first", "second", "root"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"chat.jsonl is not there; looked for {looked_in}")):
        load_mixture([{"path": "chat.jsonl"}], **places)


def test_a_hub_dataset_out_of_reach_is_an_error_that_says_where_it_looked():
    with pytest.raises(FileNotFoundError, match=re.escape("org/chat is neither a file (looked for org/chat) nor to be had")):
        load("org/chat")


def test_an_unknown_file_type_is_an_error(tmp_path):
    (tmp_path / "chat.txt").write_text("hi")
    with pytest.raises(
        ValueError, match=re.escape("chat.txt: unknown file type '.txt'; mixtures read .jsonl, .json, .parquet, .csv and folders")
    ):
        load("chat.txt")


BAD_LINES = ["{", '{"txt": "a"}', json.dumps([{"role": "user", "content": "x"}])]


def write_with_bad_lines(path, num_good: int = 2, lines=BAD_LINES) -> None:
    path.write_text("\n".join([*lines, *[json.dumps(PAIR)] * num_good]))


def test_one_error_names_every_bad_line_and_the_second_run_says_the_same(tmp_path):
    write_with_bad_lines(tmp_path / "chat.jsonl")
    expected = [
        "chat.jsonl:1: not JSON (Expecting property name enclosed in double quotes at column 2). Each line holds one JSON value.",
        'chat.jsonl:2: no conversation in an object with txt; expected {"messages": [...]}, a list of messages, {"prompt": ..., '
        '"completion": ...}, {"instruction": ..., "output": ...}, {"conversations": [{"from": "human", "value": ...}, ...]} or, for raw '
        'text, {"text": ...}, or name the columns in `columns`',
        "chat.jsonl:3: no assistant message, so there is nothing to learn. Add one or remove the conversation.",
        "3 of 5 rows of chat.jsonl cannot be used. Correct them, or set on_bad_row: skip to leave them out.",
    ]
    for _ in range(2):
        with pytest.raises(ConversationError) as error:
            load("chat.jsonl")
        assert str(error.value).splitlines() == expected


def test_bad_rows_are_left_out_with_a_warning_each_time(tmp_path, caplog):
    write_with_bad_lines(tmp_path / "chat.jsonl")
    for _ in range(2):
        caplog.clear()
        assert load_mixture([{"path": "chat.jsonl"}], on_bad_row="skip")["messages"][:] == [PAIR, PAIR]
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert record.message.startswith("3 of 5 rows of chat.jsonl are left out:\nchat.jsonl:1: not JSON")
    with pytest.raises(ConversationError, match="3 of 5 rows"):  # the setting is no part of what is cached
        load("chat.jsonl")


def test_twenty_bad_lines_are_shown_and_the_rest_is_counted_by_kind(tmp_path):
    write_with_bad_lines(tmp_path / "chat.jsonl", lines=["3"] * 20 + ["[]"] * 30 + ["4"] * 2)
    with pytest.raises(ConversationError) as error:
        load("chat.jsonl")
    lines = str(error.value).splitlines()
    assert lines[19].startswith("chat.jsonl:20: no conversation in a int")
    assert lines[20:22] == ["... and 32 more:", "30 x there is no user message, expected at least one. Add one or remove the conversation."]
    assert lines[22].startswith("2 x no conversation in a int")
    assert lines[23].startswith("52 of 54 rows of chat.jsonl cannot be used.")


def test_a_file_of_bad_rows_only_leaves_nothing(tmp_path):
    write_with_bad_lines(tmp_path / "chat.jsonl", num_good=0)
    with pytest.raises(ValueError, match=r"chat.jsonl: no conversations left; every row is left out for its problem"):
        load_mixture([{"path": "chat.jsonl"}], on_bad_row="skip")


def test_a_cut_leaves_the_same_rows_whether_others_are_bad_or_not(tmp_path):
    rows = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": str(number)}] for number in range(9)]
    entry = {"path": "chat.jsonl", "shuffle": 1, "stop": 5}
    write_lines(tmp_path / "chat.jsonl", rows)
    before = load_mixture([entry], order="sequence")["messages"][:]
    write_lines(tmp_path / "chat.jsonl", [*rows[:4], [], *rows[5:], []][:9])
    after = load_mixture([entry], order="sequence", on_bad_row="skip")["messages"][:]
    assert after == [messages for messages in before if messages != rows[4]]


def test_elements_of_an_array_are_named_by_their_lines(tmp_path):
    (tmp_path / "chat.json").write_text(f"[{json.dumps(PAIR)},\n\n  {json.dumps(PAIR)},\n []\n]")
    rows = load_mixture([{"path": "chat.json", "stop": 2}], order="sequence", on_bad_row="skip")
    assert rows["origin"][:] == ["chat.json:1[0]", "chat.json:3[1]"]
    with pytest.raises(ConversationError, match=r"^chat.json:4\[2\]: there is no user message"):
        load("chat.json")


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "chat.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}')
    with pytest.raises(ValueError, match=r"^chat.jsonl:2: byte 10 is not UTF-8. Save the file as UTF-8."):
        load("chat.jsonl")
    (tmp_path / "chat.json").write_bytes(b'[\n"\xe9"]')
    with pytest.raises(ValueError, match=r"^chat.json:2: byte 3 is not UTF-8. Save the file as UTF-8."):
        load("chat.json")


def test_what_was_read_is_reported_from_the_cache_too(tmp_path, caplog):
    calls = [{"function": {"name": "calculator", "arguments": "1+1"}}]
    called = [PARTS[0], {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "2"}]
    values = [{"messages": PAIR, "id": 1}, {"messages": called, "id": 2}, {"instruction": "a", "output": "b"}]
    write_lines(tmp_path / "chat.jsonl", values)
    caplog.set_level("INFO", logger="chatsft")
    for _ in range(2):
        caplog.clear()
        assert load("chat.jsonl")[1][1]["content"] == [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
        report = "chat.jsonl: 3 rows, read as messages (2), Alpaca fields (1); tool calls as python parts (1); not used: id (2)"
        assert caplog.messages == [report]


def test_a_table_fills_in_none_and_is_read_all_the_same(tmp_path):
    rows = [
        {"messages": [PAIR[0], {"role": "assistant", "content": "b", "tool_calls": None}], "prompt": None, "completion": None},
        {"messages": None, "prompt": "a", "completion": "b"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "chat.parquet")
    assert [[message["content"] for message in messages] for messages in load("chat.parquet")] == [["a", "b"]] * 2
    datasets.Dataset.from_list([*rows, {"messages": []}]).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ConversationError, match=r"^bad.parquet\[2\]: there is no user message"):
        load("bad.parquet")
