"""ChatCORE: the mean accuracy of nanochat's tasks, centred on guessing."""

import datasets
import evaluate

from chatsft.evaluation.statistics import chatcore

INPUTS = """
Args:
    predictions: accuracies.
    references: the task of each.
Returns:
    ChatCORE (six tasks, 2025), ChatCORE 2026 (without SpellingBee), ChatCORE categorical: those whose tasks are all there.
"""


class ChatCore(evaluate.Metric):
    """Average accuracies on a scale from guessing (0) to perfect (1)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean of centred accuracies over nanochat's chat tasks.",
            citation="https://github.com/karpathy/nanochat",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[float], references: list[str]) -> dict[str, float]:
        return chatcore(dict(zip(references, predictions, strict=True)))
