"""Mixtures: order, cuts, repeats, the cache and entries that cannot be meant."""

import os
import re
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest

from chatsft.data import mixture
from chatsft.data.mixture import load_mixture
from chatsft.tasks import GSM8K, SimpleSpelling, SpellingBee, TaskMixture, mixture_order
from tests.tasks.fixtures import load_fixture, write_lines, write_words


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def make_pair(number: int) -> list[dict]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(number)}]


def load_numbers(*entries, **options) -> list[int]:
    return [int(messages[1]["content"]) for messages in load_mixture(entries, **options)["messages"]]


@pytest.fixture
def chat(tmp_path):
    return write_lines(tmp_path / "chat.jsonl", [make_pair(number) for number in range(10)])


def test_the_mixture_is_nanochats(tmp_path):
    data_root = write_words(tmp_path)
    write_lines(tmp_path / "gsm8k" / "train.jsonl", [case["row"] for case in load_fixture("gsm8k.json")])
    tasks = [GSM8K("main", "train", data_root=data_root)] * 2
    tasks += [SimpleSpelling(20, data_root=data_root), SpellingBee(30, data_root=data_root, stop=7)]
    entries = [
        {"task": "GSM8K", "split": "train", "repeat": 2},
        {"task": "SimpleSpelling", "size": 20, "split": "train"},
        {"task": "SpellingBee", "size": 30, "stop": 7},
    ]
    rows = load_mixture(entries, data_root=data_root)
    assert rows["messages"][:] == [conversation["messages"] for conversation in TaskMixture(tasks)]
    assert rows.column_names == ["messages", "source", "origin"]
    assert set(rows["source"]) == {"GSM8K", "SimpleSpelling", "SpellingBee"}


def test_an_entry_is_shuffled_then_cut_then_repeated(chat):
    shuffled = np.random.default_rng(42).permutation(10).tolist()
    assert shuffled == datasets.Dataset.from_dict({"n": range(10)}).shuffle(seed=42)["n"][:]
    entry = {"path": "chat.jsonl", "shuffle": 42, "start": 2, "stop": 5}
    assert load_numbers(entry, order="sequence") == shuffled[2:5]
    assert load_numbers(entry | {"repeat": 2}, order="sequence") == shuffled[2:5] * 2
    assert load_numbers({"path": "chat.jsonl", "start": 8, "stop": 99}, order="sequence") == [8, 9]


def test_order_is_shuffled_over_all_entries_or_a_sequence(chat):
    entries = [{"path": "chat.jsonl", "stop": 3}, {"path": "chat.jsonl", "start": 6, "repeat": 2}]
    values = [[0, 1, 2], [6, 7, 8, 9], [6, 7, 8, 9]]
    assert load_numbers(*entries, order="sequence") == [value for part in values for value in part]
    assert load_numbers(*entries) == [values[entry][index] for entry, index in mixture_order([3, 4, 4])]
    with pytest.raises(ValueError, match="mixture order is 'random'"):
        load_mixture(entries, order="random")


def test_loading_again_reads_the_cache_and_keeps_the_fingerprint(chat, monkeypatch):
    entries = [{"path": "chat.jsonl", "shuffle": 1}, {"task": "Arithmetic", "size": 5}]
    first = load_mixture(entries)
    monkeypatch.setattr(mixture, "pick_rows", None)  # fails if it is called
    again = load_mixture(entries)
    assert again._fingerprint == first._fingerprint
    assert again[:] == first[:]


def test_another_process_gets_the_same_fingerprint(chat, cache):
    entries = [{"path": "chat.jsonl"}, {"task": "Arithmetic"}]
    program = f"from chatsft.data.mixture import load_mixture; print(load_mixture({entries})._fingerprint)"
    here = load_mixture(entries)._fingerprint
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert there.strip() == here


def test_an_edited_file_is_read_anew_even_if_its_size_is_the_same(chat):
    assert load_numbers({"path": "chat.jsonl"}, order="sequence")[0] == 0
    before = chat.stat()
    write_lines(chat, [make_pair(9 - number) for number in range(10)])
    os.utime(chat, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert chat.stat().st_size == before.st_size
    assert load_numbers({"path": "chat.jsonl"}, order="sequence")[0] == 9


def test_another_package_version_reads_anew(chat, monkeypatch):
    before = load_mixture([{"path": "chat.jsonl"}])._fingerprint
    monkeypatch.setattr(mixture, "__version__", "99.0")
    assert load_mixture([{"path": "chat.jsonl"}])._fingerprint != before


ECHO_TASK = """
    from pathlib import Path
    from chatsft.tasks import Task

    class Echo(Task):
        def __init__(self, words, **kwargs):
            super().__init__(**kwargs)
            self.words = Path(words).read_text().split()

        def num_examples(self):
            return len(self.words)

        def get_example(self, index):
            return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": self.words[index]}]}
"""


def test_a_task_of_ones_own_is_read_anew_when_its_examples_change(tmp_path, monkeypatch):
    (tmp_path / "echo_task.py").write_text(textwrap.dedent(ECHO_TASK))
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = {"task": "echo_task:Echo", "words": "words.txt", "start": 1}
    (tmp_path / "words.txt").write_text("1 2 3")
    before = load_mixture([entry])._fingerprint
    assert load_mixture([entry])._fingerprint == before
    assert load_numbers(entry, order="sequence") == [2, 3]
    (tmp_path / "words.txt").write_text("4 5 6")
    assert load_numbers(entry, order="sequence") == [5, 6]
    assert load_mixture([entry])[0]["source"] == "Echo"


def test_tasks_with_a_bad_conversation_name_it(tmp_path):
    rows = [{"messages": make_pair(0)}, {"messages": [{"role": "assistant", "content": "x"}]}]
    write_lines(tmp_path / "smoltalk" / "train.jsonl", rows)
    with pytest.raises(ValueError, match=r"^SmolTalk\[0\]: message 0 has role 'assistant', expected 'user'"):
        load_mixture([{"task": "SmolTalk", "split": "train"}], data_root=tmp_path)


@pytest.mark.parametrize(
    "entry, message",
    [
        ("chat.jsonl", "mixture entry 2 is 'chat.jsonl'; expected an object, as {task: GSM8K, split: train} or {path: chats.jsonl}"),
        ({"pth": "x"}, "mixture entry 2 has neither task nor path, but pth"),
        ({"path": "chat.jsonl", "task": "MMLU"}, "mixture entry 2 has both task and path"),
        ({"path": 3}, "mixture entry 2: path is 3; expected a name"),
        ({"path": "chat.jsonl", "spilt": "train"}, "mixture entry 2: unknown key 'spilt' (did you mean split?); it takes path, name,"),
        ({"task": "Arithmetic", "repat": 2}, "mixture entry 2: unknown key 'repat' (did you mean repeat?); it takes task, start,"),
        ({"task": "Arithmetik"}, "no task 'Arithmetik' (did you mean Arithmetic?)"),
        (
            {"path": "chat.jsonl", "columns": {"question": "q"}},
            "mixture entry 2: columns is {'question': 'q'}; expected {messages: COLUMN}",
        ),
        ({"path": "chat.jsonl", "stop": -1}, "mixture entry 2: stop is -1; expected 0 or more"),
        ({"path": "chat.jsonl", "repeat": 0}, "mixture entry 2: repeat is 0; expected 1 or more"),
        ({"path": "chat.jsonl", "shuffle": True}, "mixture entry 2: shuffle is True; expected a whole number (the seed, 42 in nanochat)"),
        ({"task": "Arithmetic", "size": 1.5}, "mixture entry 2: size is 1.5; expected a whole number"),
        ({"path": "chat.jsonl", "start": 5, "stop": 5}, "mixture entry 2: stop 5 leaves nothing after start 5"),
        ({"path": "chat.jsonl", "start": 10}, "chat.jsonl: no conversations left; it has 10, start is 10"),
        ({"path": "empty.jsonl"}, "empty.jsonl is empty. Write one conversation a line."),
    ],
)
def test_an_entry_that_cannot_be_meant_is_an_error(chat, tmp_path, entry, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        load_mixture([{"path": "chat.jsonl"}, entry])


def test_an_empty_mixture_is_an_error():
    with pytest.raises(ValueError, match="mixture is empty"):
        load_mixture([])


def test_raw_text_mixes_with_conversations(chat, tmp_path):
    write_lines(tmp_path / "corpus.jsonl", [{"text": "one"}, {"text": "two"}])
    write_lines(tmp_path / "pages.jsonl", [{"body": "three"}])
    entries = [{"path": "corpus.jsonl"}, {"path": "pages.jsonl", "columns": {"text": "body"}}, {"path": "chat.jsonl", "stop": 1}]
    rows = load_mixture(entries, order="sequence")
    assert rows["messages"][:] == ["one", "two", "three", make_pair(0)]
    assert rows["origin"][1] == "corpus.jsonl:2"


def test_an_empty_text_is_named_with_its_line(tmp_path):
    write_lines(tmp_path / "corpus.jsonl", [{"text": "one"}, {"text": ""}])
    with pytest.raises(ValueError, match=r"corpus.jsonl:2: the text is empty"):
        load_mixture([{"path": "corpus.jsonl"}])
