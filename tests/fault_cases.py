"""What two processes do for test_faults: meet faults, be told to stop, and go on with what one process has left."""

import os
import resource
import signal
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState

from chatsft import gradients
from chatsft.trainer import ChatTrainer
from tests.tiny_runs import ShardedTrainer
from tests.tiny_training import (
    FaultyTrainer,
    build_rows,
    build_trainer,
    everything_that_an_update_changes,
    losses,
    run_out_of_memory,
    skipped,
)

ROWS = 8 * 6
CASES = [
    ("nan loss", 2, 0, 1, 2025),
    ("infinite loss", 0, 1, 0, 2026),
    ("nan gradient", 2, 0, 0, 2026),
    ("nan gradient", 5, 1, 1, 2025),
    ("no memory forward", 0, 0, 1, 2025),
    ("no memory forward", 3, 1, 0, 2026),
    ("no memory backward", 2, 0, 0, 2025),
    ("no memory backward", 3, 1, 1, 2026),
    ("no memory midway", 0, 1, 1, 2025),
    ("no memory midway", 4, 1, 0, 2026),
    ("no memory midway", 4, 0, 1, 2025),
]
SHARDED_CASES = [("nan loss", 2, 0, 1, 2026), ("nan gradient", 3, 1, 0, 2025)]


class ShardedFaultyTrainer(FaultyTrainer, ShardedTrainer):
    pass


def run_case(
    folder: Path,
    fault: str,
    step: int,
    micro_batch: int,
    process: int,
    generation: int,
    kind: type = FaultyTrainer,
    tolerance: float = 0.0,
    **settings,
) -> dict:
    """Train with a fault, and without the rows of the step that meets it."""
    settings |= {"trainer_class": kind, "generation": generation}
    forget_state()
    gradients.BUCKET_BYTES = 10_000  # so that gradients are sent in several parts
    rows = build_rows(ROWS)
    faulty = build_trainer(folder, rows, **settings)
    faulty.faults = {(step, micro_batch, process): fault}
    faulty.train()
    forget_state()
    fewer = rows[: 8 * step] + rows[8 * (step + 1) :]
    reference = build_trainer(folder, fewer, max_steps=5, skipped_updates=(step,), **settings)
    reference.faults = {}
    reference.train()
    pairs = zip(everything_that_an_update_changes(faulty), everything_that_an_update_changes(reference), strict=True)
    return {
        "losses": [losses(faulty), losses(reference)],
        "is_equal": all(torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance) for a, b in pairs),
        "skipped": skipped(faulty),
        "count": [log["skipped_steps"] for log in faulty.state.log_history if "skipped_steps" in log],
        "global_step": faulty.state.global_step,
    }


def watch_averaging(folder: Path) -> list[tuple[int, int]]:
    """Return the parts of the gradients sent before the end of each step's last backward pass, and all parts."""
    forget_state()
    gradients.BUCKET_BYTES = 10_000
    trainer = build_trainer(folder, build_rows(ROWS))
    parts, finish = [], gradients.GradientAverager.finish

    def watch(averager) -> None:
        parts.append((len(averager.works), len(averager.buckets)))
        finish(averager)

    with mock.patch.object(gradients.GradientAverager, "finish", watch):
        trainer.train()
    return parts


def run_sharded_case(folder: Path, *case) -> dict:
    return run_case(folder, *case, kind=ShardedFaultyTrainer)


def forget_state() -> None:
    """Let accelerate find out anew how this run is distributed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class StoppedTrainer(ChatTrainer):
    """Send SIGTERM to the second process alone, in the middle of its third step."""

    def compute_loss(self, *args, **kwargs):
        if (self.state.global_step, self.args.process_index) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().compute_loss(*args, **kwargs)


class StoppedOnce(StoppedTrainer):
    """Meet a NaN in the step before that too, and run out of memory in the last and smaller step of an epoch."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        if (self.state.global_step, self.args.process_index) == (7, 0):
            run_out_of_memory()
        return loss * float("nan") if self.state.global_step == 1 else loss


class StoppedShardedTrainer(StoppedTrainer, ShardedTrainer):
    pass


def run_sharded_on_after_sigterm(folder: Path) -> str:
    """Return why the trainer of a sharded run that has ended makes no other one."""
    forget_state()
    trainer = build_trainer(folder, build_rows(ROWS), trainer_class=StoppedShardedTrainer)
    trainer.train()
    try:
        trainer.train(resume_from_checkpoint=True)
    except ValueError as error:
        return str(error)
    return ""


def run_on_after_sigterm(folder: Path) -> dict:
    """Train until SIGTERM and from there on, with one trainer, on epochs of three steps and a half; nothing is logged on the way."""
    forget_state()
    options = {"trainer_class": StoppedOnce, "generation": 2026, "max_steps": 8, "logging_steps": 100}
    trainer = build_trainer(folder, build_rows(28), **options)
    trainer.train()
    stopped_at = trainer.state.global_step
    trainer.train(resume_from_checkpoint=True)
    return {
        "stopped_at": stopped_at,
        "ending": trainer.ending,
        "skipped": [(log["step"], log["rows"]) for log in skipped(trainer)],
        "num_steps": {group["num_steps"] for group in trainer.optimizer.param_groups if "num_steps" in group},
    }


def run_until_sigterm(folder: Path) -> dict:
    forget_state()
    trainer = build_trainer(folder, build_rows(ROWS), trainer_class=StoppedTrainer, generation=2026)
    trainer.train()
    return {"ending": trainer.ending, "global_step": trainer.state.global_step}


class FullDiskTrainer(ChatTrainer):
    """Write the checkpoint of the fourth step on a disk that is full, on the first process, which writes most."""

    def _save_checkpoint(self, model, trial) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if (self.state.global_step, self.args.process_index) == (4, 0):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            super()._save_checkpoint(model, trial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def run_on_a_full_disk(folder: Path) -> list[int]:
    forget_state()
    trainer = build_trainer(folder, build_rows(ROWS), trainer_class=FullDiskTrainer, save_strategy="steps", save_steps=2)
    trainer.train()
    return [log["step"] for log in trainer.state.log_history if "unsaved_checkpoint" in log]


def resume(folder: Path) -> list[float]:
    forget_state()
    trainer = build_trainer(folder, build_rows(ROWS), generation=2026)
    trainer.train(resume_from_checkpoint=True)
    return losses(trainer)
