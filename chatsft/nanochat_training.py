"""What every kind of training has in common: nanochat's optimizer and schedule, and what is saved beside the weights."""

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils.modeling import is_peft_model
from huggingface_hub import HfApi
from torch.optim.lr_scheduler import LambdaLR

from chatsft.arguments import RunArguments, check_deepspeed, optimizer_key
from chatsft.nanochat_origin import EXTRA_FILE, Origin, save_origin
from chatsft.optim.groups import parameter_groups
from chatsft.optim.muon import MuonAdamW
from chatsft.optim.schedule import lr_multiplier


class NanochatTraining:
    """Goes before transformers' Trainer, or one of TRL's, in the bases of a trainer whose args are RunArguments.

    Args:
        origin: what nanochat kept beside the base, set before training where there is any.
    """

    args: RunArguments
    origin: Origin | None = None

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            key = optimizer_key(is_peft_model(self.model))
            optimizer = getattr(args, key)
            if self.is_deepspeed_enabled:
                check_deepspeed(key, optimizer)
            groups = parameter_groups(
                self.model if model is None else model,
                optimizer=optimizer,
                matrix_lr=args.matrix_lr,
                embedding_lr=args.embedding_lr,
                unembedding_lr=args.unembedding_lr,
                scalar_lr=args.scalar_lr,
                vision_lr=args.vision_lr,
                weight_decay=args.weight_decay,
                init_lr_frac=args.init_lr_frac,
                precision=args.muon_precision,
            )
            self.optimizer = MuonAdamW(groups, process_group=dist.group.WORLD if args.world_size > 1 else None)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.lr_scheduler is None:
            num_training_steps = max(num_training_steps, 1)  # a run of no steps evaluates and saves
            warmup_ratio = self.args.get_warmup_steps(num_training_steps) / num_training_steps

            def multiplier(update: int) -> float:
                return lr_multiplier(update / num_training_steps, warmup_ratio, self.args.warmdown_ratio, self.args.final_lr_frac)

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, multiplier)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save a whole optimizer, though each process keeps a share of Muon's momentum."""
        if isinstance(self.optimizer.optimizer, MuonAdamW):
            self.optimizer.optimizer.consolidate_state_dict(keep=self.args.should_save)
        super()._save_optimizer_and_scheduler(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save what nanochat kept beside the base too, so that any checkpoint goes back to nanochat."""
        super()._save(output_dir, state_dict)
        if self.origin is not None and self.args.should_save:
            save_origin(self.origin, output_dir or self.args.output_dir)

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Make the repository, and see that this token may write to it while nothing has been trained yet."""
        super().init_hf_repo(*args, **kwargs)
        if self.is_world_process_zero():
            HfApi().auth_check(self.hub_model_id, write=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model's code too: Trainer copies the weights and the configuration out of a checkpoint and leaves the rest."""
        folder = Path(checkpoint_folder)
        for path in [*folder.glob("*.py"), *folder.glob(EXTRA_FILE)] if self.is_world_process_zero() else []:
            shutil.copy(path, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args, **kwargs) -> None:
        """Keep the card that is there: it says more than the one that Trainer would put over it."""
        if not (Path(self.args.output_dir) / "README.md").is_file():
            super().create_model_card(*args, **kwargs)
