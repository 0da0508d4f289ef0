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
        (
            json.dumps([*PAIR, {"role": "tool", "content": "x"}]),
            "message 2 has role 'tool', expected 'user'. Put tool output in a python_output part.",
        ),
        (json.dumps([{"role": "assistant", "content": "x"}]), "message 0 has role 'assistant', expected 'user'"),
        (json.dumps([{"role": "user"}]), "message 0 (user) has content of None (or missing)"),
        (json.dumps([{"role": "user", "content": "x"}]), "no assistant message, so there is nothing to learn"),
        ('{"conversations": [{"from": "observation", "value": "x"}]}', "turn 0 is from 'observation'"),
    ],
)
def test_the_first_bad_line_is_an_error_with_its_number_even_if_unused(tmp_path, line, message):
    (tmp_path / "chat.jsonl").write_text(f"{json.dumps(PAIR)}\n{line}\n{json.dumps(PAIR)}\n")
    with pytest.raises(ValueError, match="^" + re.escape(f"chat.jsonl:2: {message}")):
        load("chat.jsonl", stop=1)


def test_a_broken_array_names_its_line(tmp_path):
    (tmp_path / "chat.json").write_text('[\n  [{"role": "user" "content"}]\n]')
    with pytest.raises(ValueError, match=re.escape("chat.json:2: not JSON (Expecting ',' delimiter")):
        load("chat.json")
    (tmp_path / "chat.json").write_text(json.dumps([PAIR, [PAIR[1]]]))
    with pytest.raises(ConversationError, match=re.escape("chat.json[1]: message 0 has role 'assistant'")):
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
