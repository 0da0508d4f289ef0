"""The difference between two models' accuracies on the same problems."""

import datasets
import evaluate

from chatsft.evaluation.statistics import mcnemar_p, paired_interval

INPUTS = """
Args:
    predictions1: the verdict on each problem.
    predictions2: another model's verdicts on the same problems.
Returns:
    difference: accuracy of the first minus that of the second.
    interval: its 95 % interval (Newcombe 1998, method 10).
    p_value: of McNemar's exact test.
    num_better, num_worse: problems that only the first, or only the second, solves.
    num_problems.
"""


class PairedDifference(evaluate.Comparison):
    """Compare verdicts problem by problem: what both solve or neither does says nothing about the difference."""

    def _info(self) -> evaluate.ComparisonInfo:
        verdict = datasets.Value("bool")
        return evaluate.ComparisonInfo(
            description="Paired difference of accuracies with interval and exact test.",
            citation="Newcombe 1998, Statistics in Medicine 17, 2635-2650; McNemar 1947, Psychometrika 12, 153-157",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions1": verdict, "predictions2": verdict}),
        )

    def _compute(self, predictions1: list[bool], predictions2: list[bool]) -> dict:
        pairs = list(zip(predictions1, predictions2, strict=True))
        both, better, worse, neither = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        return {
            "difference": (better - worse) / len(pairs) if pairs else 0.0,
            "interval": paired_interval(both, better, worse, neither),
            "p_value": mcnemar_p(better, worse),
            "num_better": better,
            "num_worse": worse,
            "num_problems": len(pairs),
        }
