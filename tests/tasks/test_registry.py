"""Tasks by name, and a nanochat-style class of one's own."""

import re
import sys
import textwrap

import pytest

from chatsft.tasks import TASKS, create_task
from tests.tasks.fixtures import load_fixture, write_lines, write_words

# as written for nanochat, with only its import line changed
USER_TASK = """
    from chatsft.tasks import Task, render_mc

    class Capitals(Task):
        letters = ("A", "B")

        def __init__(self, split, hard=False, **kwargs):
            super().__init__(**kwargs)
            assert split in ["train", "test"]
            self.rows = [("France", "Paris", "Lyon"), ("Peru", "Lima", "Cusco"), ("Japan", "Tokyo", "Kyoto")]

        @property
        def eval_type(self):
            return 'categorical'

        def num_examples(self):
            return len(self.rows)

        def get_example(self, index):
            country, right, wrong = self.rows[index]
            return {
                "messages": [
                    {"role": "user", "content": render_mc(f"Capital of {country}?", self.letters, [right, wrong])},
                    {"role": "assistant", "content": "A"},
                ],
                "letters": self.letters,
            }

        def evaluate(self, conversation, assistant_response):
            assert assistant_response in self.letters
            return assistant_response == conversation['messages'][-1]['content']
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(textwrap.dedent(USER_TASK))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_tasks", raising=False)
    return "my_tasks"


def test_a_nanochat_task_runs_with_its_import_line_changed(user_module):
    task = create_task(f"{user_module}:Capitals", split="train", hard=True, start=1, data_root="unused")
    assert len(task) == 2 and task.eval_type == "categorical"
    assert task[1]["messages"][0]["content"].startswith("Multiple Choice question: Capital of Japan?\n- Tokyo=A\n")
    assert task.evaluate(task[0], "A") and not task.evaluate(task[0], "B")


def test_every_name_makes_its_task(tmp_path):
    write_words(tmp_path)
    choice, messages = load_fixture("multiple_choice.json"), load_fixture("smoltalk.json")[0]["row"]
    for name in ("ARC-Easy", "ARC-Challenge"):
        write_lines(tmp_path / "arc" / name / "test.jsonl", [choice["arc"][0]["row"]])
    write_lines(tmp_path / "mmlu" / "test.jsonl", [choice["mmlu"][0]["row"]])
    write_lines(tmp_path / "gsm8k" / "test.jsonl", [load_fixture("gsm8k.json")[0]["row"]])
    write_lines(tmp_path / "humaneval" / "HumanEval.jsonl", [load_fixture("humaneval.json")["row"]])
    write_lines(tmp_path / "smoltalk" / "test.jsonl", [messages])
    for name in TASKS:
        assert create_task(name, split="test", data_root=tmp_path)[0]["messages"][0]["role"] == "user"


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("arc-easy", {}, "no task 'arc-easy' (did you mean ARC-Easy?)"),
        ("GSM9K", {}, "no task 'GSM9K' (did you mean GSM8K?)"),
        ("Poetry!", {}, "no task 'Poetry!'; known are ARC-Easy, "),
        (
            "Arithmetic",
            {"splt": "test"},
            "task Arithmetic has no option 'splt' (did you mean split?); it takes size, split, start",
        ),
        ("ARC-Easy", {"subset": "ARC-Challenge", "split": "test"}, "task ARC-Easy has no option 'subset'"),
        ("SmolTalk", {}, "task SmolTalk needs the option 'split'"),
        ("GSM8K", {}, "GSM8K split is not set; it is one of train, test"),
        ("MMLU", {}, "MMLU split is not set; it is one of test, "),
        ("no_such_module:Mine", {}, "No module named 'no_such_module'. The module has to be importable"),
        ("chatsft.tasks.arc:ARCC", {}, "module chatsft.tasks.arc has no 'ARCC'"),
        ("chatsft.tasks.arc:Path", {}, "'chatsft.tasks.arc:Path' is not a subclass of chatsft.tasks.Task"),
    ],
)
def test_a_wrong_name_or_option_is_an_error_that_helps(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_task(name, **options)


def test_a_module_in_the_working_folder_is_found_whatever_started_the_program(tmp_path, monkeypatch):
    source = "from chatsft.tasks import Task\nclass Mine(Task):\n    def num_examples(self):\n        return 7\n"
    (tmp_path / "module_in_working_folder.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert len(create_task("module_in_working_folder:Mine")) == 7
