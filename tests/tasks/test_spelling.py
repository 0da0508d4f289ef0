"""SpellingBee and SimpleSpelling, against recorded rows."""

import random
import re

import pytest

from chatsft.tasks import SimpleSpelling, SpellingBee, words
from tests.tasks.fixtures import FIXTURES, load_fixture, write_words

RECORDED = load_fixture("spelling.json")
MANY_WORDS = "".join(sorted({"".join(random.Random(seed).choices("abcdefghij", k=7)) + "\n" for seed in range(30_000)}))


@pytest.mark.parametrize("task_class, name", [(SpellingBee, "spellingbee"), (SimpleSpelling, "simplespelling")])
def test_training_rows_are_the_recorded_ones(tmp_path, task_class, name):
    task = task_class(size=20, split="train", data_root=write_words(tmp_path))
    assert list(task) == RECORDED[name]["train"]


def test_nanochat_tested_on_training_rows_and_we_do_not(tmp_path):
    recorded = RECORDED["simplespelling"]
    assert recorded["test"][:-1] == recorded["train"][1:]
    task = SimpleSpelling(size=20, split="test", data_root=write_words(tmp_path))
    assert not [conversation for conversation in task if conversation in recorded["train"]]


@pytest.mark.parametrize("task_class", [SpellingBee, SimpleSpelling])
def test_test_rows_use_no_word_of_a_training_row(tmp_path, monkeypatch, task_class):
    monkeypatch.setattr(f"chatsft.tasks.{task_class.__name__.lower()}.NUM_TRAIN", 20_000)
    data_root = write_words(tmp_path, MANY_WORDS)
    word = re.compile("[a-j]{7}")
    trained = {word.search(row["messages"][0]["content"])[0] for row in task_class(20_000, "train", data_root=data_root)}
    tested = [word.search(row["messages"][0]["content"])[0] for row in task_class(300, "test", data_root=data_root)]
    assert len(trained) > 10_000 and len(set(tested)) > 250
    assert not trained.intersection(tested)


def test_spellingbee_is_judged_as_recorded(tmp_path):
    task = SpellingBee(size=1, data_root=write_words(tmp_path))
    conversation = task[0]
    assert [[completion, task.evaluate(conversation, completion)] for completion, _ in RECORDED["evaluate"]] == RECORDED["evaluate"]
    assert task.reward(conversation, "#### 1") == 1.0


def test_a_spelled_word_is_right_when_every_letter_is(tmp_path):
    task = SimpleSpelling(size=1, data_root=write_words(tmp_path))
    answer = task[0]["messages"][-1]["content"]
    verdicts = [task.evaluate(task[0], completion) for completion in (answer, f" {answer}\n", answer[:-1], answer + ",s", "")]
    assert verdicts == [True, True, False, False, False]


def test_a_word_list_is_downloaded_when_there_is_no_data_root(monkeypatch):
    monkeypatch.setattr(words, "WORD_LIST_URL", str(FIXTURES / "words_alpha.txt"))
    assert list(SimpleSpelling(size=20)) == RECORDED["simplespelling"]["train"]


@pytest.mark.parametrize("text, message", [("a\n\nb\n", ":2: an empty line"), ("\n", ":1: an empty line")])
def test_a_broken_word_list_is_an_error(tmp_path, text, message):
    data_root = write_words(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(f"words_alpha.txt{message}")):
        SpellingBee(size=1, data_root=data_root)[0]


def test_a_missing_word_list_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "words" / "words_alpha.txt"))):
        SpellingBee(size=1, data_root=tmp_path)
