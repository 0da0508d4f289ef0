"""Accuracy of verdicts, with its interval and pass@k."""

import datasets
import evaluate

from chatsft.evaluation.statistics import pass_at_k, wilson_interval

INPUTS = """
Args:
    predictions: for each problem the verdicts on its answers, as many for every problem.
Returns:
    accuracy: share of problems of which any answer is right (nanochat's measure).
    interval: its 95 % Wilson interval.
    num_correct, num_problems.
    pass_at: unbiased pass@k (Chen et al. 2021) by k, for k = 1, 2, 4, ... up to the number of answers.
"""


class TaskAccuracy(evaluate.Metric):
    """Count solved problems."""

    def _info(self) -> evaluate.MetricInfo:
        verdicts = datasets.List(datasets.Value("bool"))
        return evaluate.MetricInfo(
            description="Accuracy over problems with one or several answers each.",
            citation="Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": verdicts}),
        )

    def _compute(self, predictions: list[list[bool]]) -> dict:
        num_problems, num_correct = len(predictions), sum(map(any, predictions))
        num_samples = len(predictions[0]) if predictions else 0
        powers = [2**exponent for exponent in range(num_samples.bit_length())]
        return {
            "accuracy": num_correct / num_problems if predictions else 0.0,
            "interval": wilson_interval(num_correct, num_problems),
            "num_correct": num_correct,
            "num_problems": num_problems,
            "pass_at": {k: sum(pass_at_k(num_samples, sum(verdicts), k) for verdicts in predictions) / num_problems for k in powers},
        }
