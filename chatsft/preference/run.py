"""From a trainer that is ready to a model in its folder."""

from collections import Counter
from collections.abc import Iterable, Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState

from chatsft.preference.policy import Policy
from chatsft.recipe import Recipe
from chatsft.resumable_trainer import ResumableTrainer
from chatsft.run_folder import train_and_save
from chatsft.task_metrics import TaskMetrics
from chatsft.tasks import Task


def run(
    trainer: ResumableTrainer,
    recipe: Recipe,
    policy: Policy,
    eval_tasks: Mapping[str, Task],
    sources: Iterable[str],
    curves: Mapping[str, str],
) -> None:
    """Train and save.

    Args:
        sources: of the training rows, for the model card.
        curves: see `train_and_save`.
    """
    if eval_tasks:
        trainer.add_callback(TaskMetrics(trainer, eval_tasks, policy.tokenizer))
    trainer.add_callback(EndIfTold(trainer))
    train_and_save(trainer, recipe, Counter(sources), policy.origin, policy.fingerprint, curves)


class EndIfTold(TrainerCallback):
    """End a run after the step in which a process was told to."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer.end_if_told()
