"""Fine-tuning that goes on with the momenta of nanochat's pretraining."""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState

from chatsft.arguments import ModelArguments, RecipeError
from chatsft.model.nanochat_checkpoint import choose_step, is_nanochat_checkpoint
from chatsft.optim.pretraining_state import find_optimizer_files, load_pretraining_state


class WarmStart(TrainerCallback):
    """Begin with the momenta that nanochat's pretraining left beside a checkpoint; a resumed run has its own."""

    def __init__(self, folder: Path, step: int):
        self.folder, self.step = folder, step

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, model=None, optimizer=None, **kwargs) -> None:
        if state.global_step == 0:
            load_pretraining_state(optimizer, model, self.folder, self.step)


def plan_warm_start(model_args: ModelArguments, optimizer: str) -> list[WarmStart]:
    """Return what loads pretraining's momenta if the recipe wants them, and see that they are there and of use."""
    folder = Path(model_args.model_name_or_path)
    if not model_args.load_optimizer:
        return []
    if not is_nanochat_checkpoint(folder):
        raise RecipeError(
            f"load_optimizer reads nanochat's files, but {folder} is not a nanochat checkpoint folder. Name one, or leave it out."
        )
    if optimizer != "muon_2026":
        raise RecipeError(f"load_optimizer is for optimizer: muon_2026, as nanochat's pretraining ran, not {optimizer}.")
    step = choose_step(folder)
    find_optimizer_files(folder, step)
    return [WarmStart(folder, step)]
