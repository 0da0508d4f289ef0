import pytest

from chatsft.evaluation import EvaluationOptions, evaluate_task
from tests.evaluation.recorded_model import RECORDED, ListTask, load_model, load_tokenizer, recorded_task


def evaluate(task: ListTask, **options):
    return evaluate_task("spellingbee", task, load_model(), load_tokenizer(), EvaluationOptions(**options))


def shortest(num_problems: int) -> ListTask:
    return ListTask(recorded_task("spellingbee").conversations[:num_problems], "generative")


@pytest.mark.parametrize("batch_size", [4, 16])
def test_completions_and_accuracy_equal_nanochat_at_any_batch_size(batch_size):
    recorded = RECORDED["spellingbee"]
    report = evaluate(recorded_task("spellingbee"), batch_size=batch_size)
    assert [problem.completions for problem in report.problems] == [[text] for text in recorded["completions"]]
    assert [problem.correct for problem in report.problems] == [[verdict] for verdict in recorded["correct"]]
    assert report.accuracy == recorded["accuracy"]


def test_a_prompt_without_room_for_an_answer_is_cut_and_counted():
    conversation = recorded_task("spellingbee")[0]
    question, answer = conversation["messages"]
    long = {"messages": [question | {"content": "well, " * 400 + question["content"]}, answer]}
    report = evaluate(ListTask([conversation, long], "generative"), max_new_tokens=8)
    assert [problem.truncated for problem in report.problems] == [False, True]
    assert report.num_truncated == 1


def test_a_problem_counts_when_any_sample_is_right():
    report = evaluate(shortest(3), num_samples=4, temperature=1.5, max_new_tokens=180)
    verdicts = [problem.correct for problem in report.problems]
    assert [len(problem.completions) for problem in report.problems] == [4, 4, 4]
    assert {True, False} <= {verdict for problem in verdicts for verdict in problem}  # or this test shows nothing
    assert report.num_correct == sum(map(any, verdicts))
    assert report.pass_at.keys() == {1, 2, 4}
    assert report.pass_at[1] == pytest.approx(sum(sum(problem) / 4 for problem in verdicts) / 3)
    assert report.pass_at[4] == report.accuracy


def test_sampling_repeats_with_its_seed():
    first, again, other = (evaluate(shortest(2), temperature=3.0, max_new_tokens=12, seed=seed).problems for seed in (1, 1, 2))
    assert first == again != other
