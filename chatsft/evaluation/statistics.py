"""Numbers about verdicts: intervals, pass@k, ChatCORE."""

from math import comb, sqrt

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
