from types import SimpleNamespace

import pytest

from chatsft.evaluation import EvaluationOptions, ProblemResult, evaluate_task, task_evaluation
from chatsft.tasks import Task
from tests.evaluation.recorded_model import load_model, load_tokenizer, recorded_task


@pytest.mark.parametrize(("name", "temperature"), [("arc", 0.0), ("spellingbee", 3.0)])
def test_shares_of_two_ranks_add_up_to_one_process(monkeypatch, name, temperature):
    options = EvaluationOptions(batch_size=2, temperature=temperature, max_new_tokens=10)
    arguments = (name, recorded_task(name), load_model(), load_tokenizer(), options)
    whole = evaluate_task(*arguments)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(task_evaluation, "PartialState", lambda rank=rank: SimpleNamespace(process_index=rank, num_processes=2))
        shares.append(evaluate_task(*arguments).problems)
    assert all(0 < len(share) < whole.num_problems for share in shares)
    assert task_evaluation.summarize(name, shares[1] + shares[0]) == whole


def test_the_model_goes_back_to_training():
    model = load_model()
    model.train()
    try:
        evaluate_task("arc", recorded_task("arc"), model, load_tokenizer(), EvaluationOptions(max_problems=1))
        assert model.training
    finally:
        model.eval()


def test_a_summary_is_in_problem_order_with_its_counts():
    results = [ProblemResult(2, "c", "x", ["x"], [True], True), ProblemResult(0, "a", "x", ["y"], [False], False)]
    report = task_evaluation.summarize("odd", results)
    assert [problem.index for problem in report.problems] == [0, 2]
    assert (report.num_correct, report.num_problems, report.num_truncated, report.accuracy) == (1, 2, 1, 0.5)
    assert report.interval == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert report.pass_at == {1: 0.5}


@pytest.mark.parametrize("name", ["arc", "spellingbee"])
def test_one_problem_leaves_a_second_rank_nothing_to_do(monkeypatch, name):
    shares = []
    for rank in range(2):
        monkeypatch.setattr(task_evaluation, "PartialState", lambda rank=rank: SimpleNamespace(process_index=rank, num_processes=2))
        options = EvaluationOptions(max_problems=1, max_new_tokens=2)
        shares.append(evaluate_task(name, recorded_task(name), load_model(), load_tokenizer(), options).num_problems)
    assert shares == [1, 0]


@pytest.mark.parametrize("kind", ["categorical", "generative"])
def test_a_task_without_problems_gives_an_empty_report(kind):
    class Empty(Task):
        eval_type = kind

        def num_examples(self) -> int:
            return 0

        def get_example(self, index: int) -> dict:
            raise IndexError

    report = evaluate_task("empty", Empty(), load_model(), load_tokenizer())
    assert (report.accuracy, report.num_problems, report.interval, report.pass_at) == (0.0, 0, (0.0, 1.0), {})


@pytest.mark.parametrize(("temperature", "num_calls"), [(0.0, 1), (1.0, 3)])
def test_greedy_answers_are_written_in_one_call_that_refills_its_places(monkeypatch, temperature, num_calls):
    calls = []

    def write(model, tokenizer, task, problems, *, batch_size, **options):
        calls.append((len(problems), batch_size))
        return []

    monkeypatch.setattr(task_evaluation, "write_answers", write)
    options = EvaluationOptions(batch_size=2, max_problems=5, temperature=temperature)
    evaluate_task("spellingbee", recorded_task("spellingbee"), load_model(), load_tokenizer(), options)
    assert len(calls) == num_calls
    assert sum(size for size, _ in calls) == 5
    assert {most for _, most in calls} == {2}
