"""What is measured, as metrics of the `evaluate` library: scripts that it loads from here, offline."""

from functools import cache
from pathlib import Path

import evaluate

NAMES = ("task_accuracy", "chatcore", "bits_per_byte", "paired_difference")


@cache
def load_metric(name: str) -> evaluate.EvaluationModule:
    """Load one of `NAMES`, as `evaluate.load` does by its path.

    >>> figures = load_metric("bits_per_byte").compute(predictions=[1.0, 5.0, 3.0], references=[2, 0, 4])
    >>> round(figures["bits_per_byte"], 3)
    0.962
    """
    kind = "comparison" if name == "paired_difference" else "metric"
    return evaluate.load(str(Path(__file__).parent / f"{name}.py"), module_type=kind, keep_in_memory=True)
