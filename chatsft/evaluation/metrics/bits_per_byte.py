"""Bits per byte: a loss that does not depend on the tokenizer."""

import datasets
import evaluate
import numpy as np

from chatsft.evaluation.statistics import bits_per_byte

INPUTS = """
Args:
    predictions: loss in nats, of a token or of any longer piece of text.
    references: bytes of that piece. One of no bytes, as a special token, does not count at all.
Returns:
    bits_per_byte: infinite where there are no bytes.
"""


class BitsPerByte(evaluate.Metric):
    """Divide the bits of what has bytes by these bytes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Cross-entropy in bits for each byte of text.",
            citation="https://github.com/karpathy/nanochat",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        return {"bits_per_byte": bits_per_byte(np.array(predictions), np.array(references))}
