"""From a trainer that is ready to a model in its folder."""

from collections import Counter
from collections.abc import Iterable, Mapping

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from chatsft.arguments import RecipeError
from chatsft.evaluation.task_selection import select_tasks
from chatsft.preference.policy import Policy
from chatsft.recipe import Recipe
from chatsft.run_folder import RunRecord, save_run
from chatsft.task_metrics import TaskMetrics
from chatsft.tasks import Task


def load_eval_tasks(recipe: Recipe) -> dict[str, Task]:
    """Load the test sets of eval_tasks, before any model."""
    if recipe.training.eval_tasks is None:
        return {}
    if recipe.model.lora_r is not None:
        raise RecipeError("eval_tasks cannot copy an adapter in training to evaluate it. Leave it out and run chatsft.eval on output_dir.")
    return select_tasks(recipe.training.eval_tasks, recipe.data.data_root)


def run(
    trainer: Trainer, recipe: Recipe, policy: Policy, eval_tasks: Mapping[str, Task], sources: Iterable[str], curves: Mapping[str, str]
) -> None:
    """Train and save.

    Args:
        sources: of the training rows, for the model card.
        curves: see `save_run`.
    """
    trainer.origin = policy.origin if recipe.model.lora_r is None else None
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if eval_tasks:
        trainer.add_callback(TaskMetrics(trainer, eval_tasks, policy.tokenizer))
    trainer.add_callback(RunRecord(recipe))
    trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)
    save_run(trainer, recipe, Counter(sources), policy.origin, policy.fingerprint, curves)
