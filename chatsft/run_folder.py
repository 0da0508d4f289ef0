"""What a run leaves in its output_dir: the model, its card, its log, and what it needs to go elsewhere."""

from collections.abc import Mapping
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from chatsft.adapters import save_base_record, save_merged
from chatsft.environment import describe_environment, save_environment
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model_card import CURVES, RECIPE_FILE, recipe_text, save_model_card
from chatsft.nanochat_origin import Origin
from chatsft.recipe import Recipe


class RunRecord(TrainerCallback):
    """Save recipe.yaml (overrides applied, no secrets) and environment.json before the first update: a run cut short has them too."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_FILE).write_text(recipe_text(self.recipe), encoding="utf-8")
        save_environment(folder, describe_environment(args.world_size, model.config._attn_implementation))


def save_run(
    trainer: Trainer,
    recipe: Recipe,
    row_counts: Mapping[str, int],
    origin: Origin | None,
    fingerprint: str | None,
    curves: Mapping[str, str] | None = None,
) -> None:
    """Save a trained model as it is, merged where the recipe says so, with everything beside it; push it where the recipe says so.

    Args:
        row_counts: training rows by source, repeats counted.
        origin: what nanochat kept beside the base.
        fingerprint: of the base of an adapter.
        curves: what the card draws and the only figures it lists, label to key of the log; losses and every result when None.
    """
    folder, is_first = trainer.args.output_dir, trainer.is_world_process_zero()
    logs = trainer.state.log_history
    if curves is not None:
        logs = [{key: log[key] for key in ("step", *curves.values()) if key in log} for log in logs]
    if is_first:
        name, ships_code = trainer.hub_model_id or folder, isinstance(trainer.model, GPTForCausalLM)
        save_model_card(folder, recipe, row_counts, logs, name, ships_code, curves or CURVES)
    trainer.save_state()
    if is_first:
        save_base_record(folder, fingerprint)
    trainer.save_model()
    if recipe.model.merge_adapter and is_first:
        save_merged(trainer.model, trainer.processing_class, folder, origin)
