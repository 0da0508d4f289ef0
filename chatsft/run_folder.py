"""Train, and leave in output_dir the model, its card, its log, and what it needs to go elsewhere."""

import logging
from collections.abc import Mapping
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from chatsft.adapters import save_base_record, save_merged
from chatsft.arguments import RecipeError
from chatsft.callbacks import leave_console
from chatsft.environment import describe_environment, save_environment
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.vision import reads_images
from chatsft.model_card import CURVES, IMAGE_USE, RECIPE_FILE, TEXT_USE, recipe_text, save_model_card
from chatsft.nanochat_origin import Origin
from chatsft.recipe import Recipe
from chatsft.resumable_trainer import ResumableTrainer
from chatsft.trainer import without_adapter

logger = logging.getLogger(__name__)


class RunRecord(TrainerCallback):
    """Save recipe.yaml (overrides applied, no secrets) and environment.json before the first update: a run cut short has them too."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if state.global_step == 0 and (folder / TRAINER_STATE_NAME).is_file():
            logger.warning("%s holds the model of an earlier run, which this one will replace. Set another output_dir to keep it", folder)
        (folder / RECIPE_FILE).write_text(recipe_text(self.recipe), encoding="utf-8")
        save_environment(folder, describe_environment(args.world_size, model.config._attn_implementation))


def train_and_save(
    trainer: ResumableTrainer,
    recipe: Recipe,
    row_counts: Mapping[str, int],
    origin: Origin | None,
    fingerprint: str | None,
    curves: Mapping[str, str] | None = None,
) -> None:
    """Train and save the model; a run that was told to end has its checkpoint alone, and says how to go on.

    Args:
        row_counts: training rows by source, repeats counted.
        origin: what nanochat kept beside the base.
        fingerprint: of the base of an adapter.
        curves: what the card draws and the only figures it lists, label to key of the log; losses and every result when None.
    """
    if trainer.is_fsdp_enabled and recipe.model.lora_r and (recipe.model.merge_adapter or recipe.training.eval_tasks):
        raise RecipeError("merge_adapter and eval_tasks need the whole adapter, of which FSDP gives each process a part. Use ddp.yaml.")
    trainer.origin = None if recipe.model.lora_r else origin
    leave_console(trainer)
    trainer.add_callback(RunRecord(recipe))
    trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)
    if trainer.ending is None:
        save_run(trainer, recipe, row_counts, origin, fingerprint, curves)
    else:
        steps = (trainer.state.global_step, trainer.state.max_steps)
        logger.warning("%s: stopped after %d of %d steps. Go on with resume_from_checkpoint=true", trainer.ending, *steps)


def save_run(
    trainer: ResumableTrainer,
    recipe: Recipe,
    row_counts: Mapping[str, int],
    origin: Origin | None,
    fingerprint: str | None,
    curves: Mapping[str, str] | None,
) -> None:
    """Save a trained model as it is, merged where the recipe says so, with everything beside it; push it where the recipe says so."""
    folder, is_first = trainer.args.output_dir, trainer.is_world_process_zero()
    if is_first:
        save_card(trainer, recipe, row_counts, curves, folder, is_adapter=recipe.model.lora_r is not None)
    trainer.save_state()
    if is_first:
        save_base_record(folder, fingerprint)
    trainer.save_model()
    if recipe.model.merge_adapter and is_first:
        save_merged(trainer.model, trainer.processing_class, folder, origin)
        save_card(trainer, recipe, row_counts, curves, f"{folder}/merged", is_adapter=False)
    logger.info("wrote %s", folder)


def save_card(
    trainer: ResumableTrainer,
    recipe: Recipe,
    row_counts: Mapping[str, int],
    curves: Mapping[str, str] | None,
    folder: str,
    is_adapter: bool,
) -> None:
    """Write the card of what lies in a folder: the model, an adapter, or the model that an adapter was merged into."""
    logs = trainer.state.log_history
    if curves is not None:
        logs = [{key: log[key] for key in ("step", *curves.values()) if key in log} for log in logs]
    name = trainer.hub_model_id if trainer.hub_model_id and folder == trainer.args.output_dir else folder
    model = without_adapter(trainer.model)
    use = IMAGE_USE if reads_images(model) else TEXT_USE
    save_model_card(folder, recipe, row_counts, logs, name, isinstance(model, GPTForCausalLM), curves or CURVES, use, is_adapter)
