"""Warnings about how a run goes, each with a remedy."""

import logging
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from chatsft.model.head_loss import IGNORED

logger = logging.getLogger(__name__)

FEW_SUPERVISED = 0.25
WIDE_SWING = 20
SAMPLED_ROWS = 200


class HealthWarnings(TrainerCallback):
    """Warn, once each, about data that is mostly not trained on, steps of very unequal size, and overfitting."""

    def __init__(self):
        self.fewest, self.most, self.warned = None, 0, set()

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs) -> None:
        share = supervised_share(train_dataloader.dataset)
        if share < FEW_SUPERVISED:
            self._warn(
                state,
                f"only {share:.0%} of the training tokens are supervised. Look at the masks with `chatsft preview RECIPE`: "
                "long prompts, answers cut off by max_length and a template that marks no assistant turns are the usual causes",
            )

    def on_log(self, args, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs) -> None:
        if "supervised_tokens_min" not in logs:
            return
        self.fewest = min(self.fewest or logs["supervised_tokens_min"], logs["supervised_tokens_min"])
        self.most = max(self.most, logs["supervised_tokens_max"])
        if self.most >= WIDE_SWING * max(self.fewest, 1):
            self._warn(
                state,
                "the supervised tokens of a step swing widely",
                f": from {self.fewest:,} to {self.most:,}, so some steps learn from little and move as far as the others. "
                "Even them out with packing: true and total_batch_size (tokens per step), or more target_examples_per_step",
            )

    def on_evaluate(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if (best := overfitting_since(state.log_history)) is not None:
            self._warn(
                state,
                "validation loss rises while training loss falls",
                f": the model overfits since step {best}. Train for fewer epochs or at lower rates, or keep the best checkpoint "
                "(load_best_model_at_end: true with metric_for_best_model: loss)",
            )

    def _warn(self, state: TrainerState, what: str, more: str = "") -> None:
        if what not in self.warned and state.is_world_process_zero:
            logger.warning("%s%s", what, more)
        self.warned.add(what)


def supervised_share(dataset: Dataset) -> float:
    """Return the share of tokens with a label, from rows spread evenly over a dataset; padding does not count."""
    rows = [dataset[int(index)] for index in np.linspace(0, len(dataset) - 1, min(SAMPLED_ROWS, len(dataset)))]
    tokens = sum(len(row["labels"]) for row in rows)
    return sum(int((np.asarray(row["labels"]) != IGNORED).sum()) for row in rows) / tokens if tokens else 1.0


def overfitting_since(log_history: Sequence[dict]) -> int | None:
    """Return the step of the best validation loss if it has risen twice in a row since, while the mean training loss fell.

    >>> curve = [(3.0, 2.9), (2.0, 2.5), (1.5, 2.6), (1.0, 2.8)]
    >>> history = [log for step, (loss, eval_loss) in enumerate(curve, 1) for log in ({"loss": loss, "step": step},
    ...     {"eval_loss": eval_loss, "step": step})]
    >>> overfitting_since(history)
    2
    """
    evaluations, losses = [], []
    for log in log_history:
        if "eval_loss" in log:
            evaluations.append((log["step"], log["eval_loss"], np.mean(losses) if losses else None))
            losses = []
        elif "loss" in log:
            losses.append(log["loss"])
    if len(evaluations) < 3 or None in (evaluations[-3][2], evaluations[-1][2]):
        return None
    (step, best, before), (_, middle, _), (_, last, after) = evaluations[-3:]
    return step if best < middle < last and after < before else None
