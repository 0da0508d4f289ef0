"""Problems come from tasks with written answers, and the task's own score is the reward."""

import pytest

from chatsft.arguments import RecipeError
from chatsft.preference.prompts import load_prompts, task_reward
from chatsft.tasks import create_task
from tests.evaluation.recorded_model import load_tokenizer
from tests.preference.calculator_tasks import SUMS, answer


def test_problems_of_several_entries_know_their_judges():
    entries = [SUMS | {"start": 2}, {"task": "Arithmetic", "split": "test", "size": 2, "repeat": 2}]
    prompts, tasks = load_prompts(entries, None, "train_mixture")
    pairs = [(0, 2), (0, 3), (1, 0), (1, 1), (1, 0), (1, 1)]
    assert [(row["judge"], row["index"]) for row in prompts] == [pairs[place] for place in (3, 1, 2, 4, 0, 5)]
    assert set(prompts["source"]) == {SUMS["task"], "Arithmetic"}
    for row in prompts:
        assert row["prompt"] == tasks[row["judge"]][row["index"]]["messages"][:1]


def test_the_reward_is_the_tasks_own_score_with_or_without_the_end_of_the_answer():
    reward = task_reward([create_task("Arithmetic", size=1), create_task(SUMS["task"])], load_tokenizer())
    right, wrong = answer(1, is_right=True), answer(1, is_right=False)
    scores = reward(completion_ids=[right, wrong, right[:-1], []], judge=[1] * 4, index=[1] * 4, prompts=[], trainer_state=None)
    assert scores == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "train_mixture is empty"),
        ([{"path": "chat.jsonl"}], "train_mixture entry 1 has path 'chat.jsonl', but rewards come from a task's own score"),
        ([SUMS, {"task": "Arithmatic"}], "no task 'Arithmatic' .did you mean Arithmetic"),
        ([{"task": f"{__package__}.calculator_tasks:Unjudged"}], "judges no written answers"),
        ([SUMS | {"start": 4}], "entry 1: no problems left; .* has 4, start is 4"),
    ],
)
def test_what_gives_no_reward_is_an_error(entries, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(entries, None, "train_mixture")


def test_a_task_of_letters_gives_no_reward(tmp_path):
    (tmp_path / "arc" / "ARC-Easy").mkdir(parents=True)
    row = '{"question": "?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}'
    (tmp_path / "arc" / "ARC-Easy" / "test.jsonl").write_text(row)
    with pytest.raises(RecipeError, match="ARC-Easy judges no written answers"):
        load_prompts([{"task": "ARC-Easy", "split": "test"}], tmp_path, "train_mixture")
