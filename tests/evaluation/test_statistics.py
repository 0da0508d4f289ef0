import itertools
import json
from pathlib import Path

import pytest

from chatsft.evaluation.statistics import chatcore, pass_at_k, wilson_interval

FIXTURES = Path(__file__).parents[1] / "fixtures/evaluation"


@pytest.mark.parametrize(
    ("num_correct", "num_problems", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_interval_equals_published_values(num_correct, num_problems, expected):
    low, high = wilson_interval(num_correct, num_problems)
    assert (low, high) == pytest.approx(expected, abs=5e-5)  # Newcombe 1998, table I, method 3
    assert wilson_interval(num_problems - num_correct, num_problems) == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_of_nothing_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("num_samples", [1, 3, 6])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(num_samples):
    for num_correct, k in itertools.product(range(num_samples + 1), range(1, num_samples + 1)):
        draws = list(itertools.combinations([i < num_correct for i in range(num_samples)], k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("year", "name"), [(2025, "ChatCORE"), (2026, "ChatCORE 2026")])
def test_chatcore_equals_nanochat(year, name):
    for case in json.loads((FIXTURES / f"chatcore_{year}.json").read_text()):
        metrics = chatcore(case["results"])
        assert metrics[name] == pytest.approx(case["chatcore"], rel=1e-12, abs=1e-15)
        if year == 2026:
            assert metrics["ChatCORE categorical"] == pytest.approx(case["chatcore_cat"], rel=1e-12, abs=1e-15)


def test_chatcore_waits_for_all_its_tasks():
    assert chatcore({"ARC-Easy": 1.0, "GSM8K": 1.0}) == {}
