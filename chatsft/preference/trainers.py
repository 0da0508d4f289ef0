"""TRL's trainers with nanochat's optimizer, schedule and way of saving."""

import warnings

from datasets import Dataset
from transformers import PreTrainedModel
from trl import DPOTrainer, GRPOTrainer

from chatsft.nanochat_training import NanochatTraining
from chatsft.preference.rollout import rollout
from chatsft.resumable_trainer import ResumableTrainer

# TRL 1.16 asks models by the name that transformers has since changed.
warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


class ToolGRPOTrainer(NanochatTraining, ResumableTrainer, GRPOTrainer):
    """GRPO on answers written with the tool in the loop. Takes what TRL's trainer takes but `rollout_func`, with `GRPOArguments`."""

    writer: PreTrainedModel | None = None  # the copy that answers in bfloat16

    def __init__(self, *args, **kwargs):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func', which is an experimental feature")
            super().__init__(*args, rollout_func=rollout, **kwargs)


class PairDPOTrainer(NanochatTraining, ResumableTrainer, DPOTrainer):
    """DPO on pairs that are token ids already, see `load_pairs`. Takes what TRL's trainer takes, with `DPOArguments`."""

    def _prepare_dataset(self, dataset: Dataset, *args) -> Dataset:
        """Leave out TRL's own rendering, which knows no tool output."""
        return dataset
