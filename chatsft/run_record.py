"""What a run writes down before its first update, so that a run cut short can be told apart and repeated too."""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState

from chatsft.environment import describe_environment, save_environment
from chatsft.model_card import RECIPE_FILE, recipe_text
from chatsft.recipe import Recipe


class RunRecord(TrainerCallback):
    """Save recipe.yaml (overrides applied, no secrets) and environment.json in output_dir."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_FILE).write_text(recipe_text(self.recipe), encoding="utf-8")
        save_environment(folder, describe_environment(args.world_size, model.config._attn_implementation))
