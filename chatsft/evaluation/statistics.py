"""Numbers about verdicts: intervals, pass@k, ChatCORE, paired differences."""

from math import comb, inf, log, sqrt

import numpy as np

# What guessing scores; tasks that are written out rather than chosen have 0.
BASELINES = {"ARC-Easy": 0.25, "ARC-Challenge": 0.25, "MMLU": 0.25, "GSM8K": 0.0, "HumanEval": 0.0, "SpellingBee": 0.0}

# nanochat averaged six tasks in 2025, has left out SpellingBee since, and reports the multiple-choice tasks on their own.
CHATCORE_TASKS = {
    "ChatCORE": ["ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SpellingBee"],
    "ChatCORE 2026": ["ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval"],
    "ChatCORE categorical": ["ARC-Easy", "ARC-Challenge", "MMLU"],
}


def wilson_interval(num_correct: int, num_problems: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % by default; unlike the normal one it holds near 0 and 1.

    >>> [round(bound, 3) for bound in wilson_interval(0, 10)]
    [0.0, 0.278]
    """
    if num_problems == 0:
        return 0.0, 1.0
    share, weight = num_correct / num_problems, z * z / num_problems
    middle = (share + weight / 2) / (1 + weight)
    reach = sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased chance that one of k samples is right, given how many of `num_samples` were (Chen et al. 2021).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2)
    (0.25, 0.5)
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def bits_per_byte(losses: np.ndarray, byte_counts: np.ndarray) -> float:
    """Return the bits of what has bytes by these bytes; infinite where nothing has any.

    Args:
        losses: in nats, of tokens or of longer pieces of text.
        byte_counts: bytes of each. One of no bytes, as a special token, does not count at all.

    >>> bits_per_byte(np.array([0.693147, 1.386294, 5.0]), np.array([1, 2, 0])).__round__(3)
    1.0
    """
    has_bytes = byte_counts > 0
    return float(losses[has_bytes].sum() / (log(2) * byte_counts.sum())) if has_bytes.any() else inf


def chatcore(accuracies: dict[str, float]) -> dict[str, float]:
    """Return the mean of the accuracies, each put on a scale from guessing (0) to perfect (1), for every list of tasks that is complete.

    >>> chatcore({"ARC-Easy": 0.25, "ARC-Challenge": 0.625, "MMLU": 1.0})
    {'ChatCORE categorical': 0.5}
    """
    return {
        name: sum((accuracies[task] - BASELINES[task]) / (1.0 - BASELINES[task]) for task in tasks) / len(tasks)
        for name, tasks in CHATCORE_TASKS.items()
        if all(task in accuracies for task in tasks)
    }


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference between two accuracies on the same problems (Newcombe 1998, method 10).

    It joins the Wilson intervals of the two, narrower the more the verdicts go together; as they do, it holds near 0 and 1 and for few
    problems. (R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17, 2635-2650.)

    Args:
        both: problems that both solve; the others are those that one or none of them solves.

    >>> [round(bound, 4) for bound in paired_interval(36, 12, 2, 0)]
    [0.0569, 0.3404]
    """
    total = both + only_first + only_second + neither
    if total == 0:
        return -1.0, 1.0
    first, second = both + only_first, both + only_second
    (first_low, first_high), (second_low, second_high) = wilson_interval(first, total), wilson_interval(second, total)
    first, second = first / total, second / total
    correlation = _paired_correlation(both, only_first, only_second, neither)

    def reach(a: float, b: float) -> float:
        return sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = first - second
    return difference - reach(first - first_low, second_high - second), difference + reach(first_high - first, second - second_low)


def _paired_correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Return the correlation (phi) of paired verdicts, a positive one lessened by Newcombe's correction for continuity."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(0.0, excess - (both + only_first + only_second + neither) / 2)
    return excess / sqrt(margins)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: how likely a split this uneven is between two that are equally good.

    >>> mcnemar_p(12, 2), mcnemar_p(3, 3)
    (0.012939453125, 1.0)
    """
    total, smaller = only_first + only_second, min(only_first, only_second)
    return min(1.0, sum(comb(total, count) for count in range(smaller + 1)) / 2 ** (total - 1) if total else 1.0)
