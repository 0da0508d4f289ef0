import itertools
import json
from math import comb

import pytest

from chatsft.evaluation.comparison import compare_reports, load_earlier
from chatsft.evaluation.problems import ProblemResult
from chatsft.evaluation.results import Results, format_differences, save_results
from chatsft.evaluation.statistics import mcnemar_p, paired_interval
from chatsft.evaluation.task_evaluation import TaskReport, summarize


def report(verdicts: str, task: str = "GSM8K", question: str = "question {}", truncated: bool = False) -> TaskReport:
    """Make a report of verdicts, as "+-+" for right, wrong, right."""
    rows = [ProblemResult(i, question.format(i), "4", [verdict], [verdict == "+"], truncated) for i, verdict in enumerate(verdicts)]
    return summarize(task, rows)


def saved(path, *reports: TaskReport):
    save_results(path, Results(run={"checkpoint": "then"}, reports=list(reports)))
    return path


@pytest.mark.parametrize(
    ("table", "expected"),
    [  # Newcombe 1998, table III, method 10; left out: (1, 97, 1, 1), whose lower limit is printed 0.8736 and is 0.87367
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((18, 12, 2, 18), (0.0562, 0.3290)),
        ((36, 14, 0, 0), (0.1528, 0.4167)),
        ((35, 14, 0, 1), (0.1461, 0.4175)),
        ((18, 14, 0, 18), (0.1441, 0.3963)),
        ((2, 97, 1, 0), (0.8721, 0.9854)),
        ((0, 29, 1, 0), (0.6666, 0.9882)),
        ((1, 98, 0, 1), (0.9171, 0.9916)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
        ((30, 0, 0, 24), (-0.0358, 0.0358)),
    ],
)
def test_the_interval_equals_published_values(table, expected):
    assert paired_interval(*table) == pytest.approx(expected, abs=5e-5)


def test_the_interval_turns_with_the_sides_and_stays_within_bounds():
    for table in itertools.product(range(0, 9, 2), repeat=4):
        low, high = paired_interval(*table)
        both, first, second, neither = table
        assert paired_interval(both, second, first, neither) == pytest.approx((-high, -low))
        assert -1 - 1e-9 <= low <= high <= 1 + 1e-9
        if sum(table):
            assert low - 1e-9 <= (first - second) / sum(table) <= high + 1e-9


@pytest.mark.parametrize("chances", [(0.3, 0.1, 0.1, 0.5), (0.2, 0.3, 0.15, 0.35), (0.6, 0.1, 0.05, 0.25)])
def test_the_interval_holds_the_true_difference_about_19_times_in_20(chances):
    total, covered, truth = 30, 0.0, chances[1] - chances[2]
    for a in range(total + 1):
        for b in range(total + 1 - a):
            for c in range(total + 1 - a - b):
                d = total - a - b - c
                ways = comb(total, a) * comb(total - a, b) * comb(total - a - b, c)
                low, high = paired_interval(a, b, c, d)
                if low <= truth <= high:
                    covered += ways * chances[0] ** a * chances[1] ** b * chances[2] ** c * chances[3] ** d
    assert 0.93 < covered < 0.995


def test_mcnemars_p_is_the_share_of_splits_at_least_as_uneven():
    for total in range(9):
        for first in range(total + 1):
            splits = itertools.product((0, 1), repeat=total)
            as_uneven = sum(abs(2 * sum(split) - total) >= abs(2 * first - total) for split in splits)
            assert mcnemar_p(first, total - first) == pytest.approx(as_uneven / 2**total)


def test_the_difference_is_over_the_problems_that_both_have(tmp_path):
    earlier = load_earlier(saved(tmp_path / "then.json", report("+--"), report("+", "MMLU")), ["GSM8K"])
    [difference] = compare_reports([report("++-+"), report("+", "SpellingBee")], earlier)
    assert (difference.task, difference.num_problems, difference.num_better, difference.num_worse) == ("GSM8K", 3, 1, 0)
    assert difference.difference == pytest.approx(1 / 3)
    header, line = format_differences([difference]).splitlines()
    assert header.split()[3:] == ["change", "95", "%", "interval", "n", "better", "worse", "p"]
    assert line.split()[:2] + line.split()[4:] == ["GSM8K", "+0.3333", "3", "1", "0", "1"]


def test_another_problem_of_the_same_number_is_an_error(tmp_path):
    earlier = load_earlier(saved(tmp_path / "then.json", report("+-", question="other {}")), ["GSM8K"])
    with pytest.raises(ValueError, match="problem 0 of GSM8K was another one in the earlier evaluation"):
        compare_reports([report("+-")], earlier)


def test_a_prompt_that_another_context_has_cut_is_the_same_problem(tmp_path):
    earlier = load_earlier(saved(tmp_path / "then.json", report("+-", question="tion {}", truncated=True)), ["GSM8K"])
    assert compare_reports([report("++")], earlier)[0].num_better == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        ("{", "was not written by chatsft.eval --output"),
        ("[]", "was not written by chatsft.eval --output"),
        ('{"tasks": {"GSM8K": {"problems": [{"index": 0}]}}}', "was not written by chatsft.eval --output"),
        ('{"tasks": {"MMLU": {"problems": []}}}', "has MMLU, and none of GSM8K"),
    ],
)
def test_a_baseline_that_is_none_is_an_error(tmp_path, content, message):
    path = tmp_path / "then.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"^--baseline: ") as error:
        load_earlier(path, ["GSM8K"])
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_saving_leaves_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = saved(tmp_path / "results.json", report("+"))
    before = path.read_text()
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: "half\udc80")
    with pytest.raises(UnicodeEncodeError):
        saved(path, report("-"))
    assert path.read_text() == before
