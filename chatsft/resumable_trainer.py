"""transformers' Trainer with checkpoints that can be trusted: whole or absent, checked, written on SIGTERM, and of one run."""

import json
import logging
import uuid
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from chatsft import checkpoints
from chatsft.checkpoints import CheckpointError
from chatsft.faults import TrainingFault
from chatsft.stopping import StopSignal

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"


class ResumableTrainer(Trainer):
    """Train so that a run killed at any moment goes on as if nothing had happened.

    Trainer's own checkpoint on SIGTERM (`enable_jit_checkpoint`) is not used: there each process decides for itself when to write, and
    those that are still computing would wait for the others for ever.

    Args:
        data_fingerprint: names the training data and what a step holds; a checkpoint of other data is not resumed from.

    Attributes:
        ending: why the run ended before its last step, "SIGTERM" or a fault; None otherwise.
        is_ended: whether its checkpoint has been written.
    """

    def __init__(self, *args, data_fingerprint: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_fingerprint, self.run, self.ending, self.is_ended = data_fingerprint, uuid.uuid4().hex, None, False
        self.stop_signal = StopSignal()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train, from the checkpoint asked for if any; True takes the last undamaged one, and begins anew where there is none yet.

        Raises:
            CheckpointError: where what is asked for cannot be resumed from.
            TrainingFault: where `ending` is a fault; a checkpoint has been written.
        """
        self.ending, self.is_ended = None, False
        checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            self.args.eval_on_start = False  # that was at the start
        with self.stop_signal:
            output = super().train(checkpoint, *args, **kwargs)
        if self.ending not in (None, "SIGTERM"):
            raise TrainingFault(f"{self.ending}. A checkpoint from after it is in {self.args.output_dir}.")
        return output

    def _run_epoch(self, *args, **kwargs) -> None:
        """Make no step beyond the last one: Trainer would make one when it resumes from the checkpoint of a finished run."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def end(self, reason: str) -> None:
        """End the run after the current step, with a checkpoint; every process has to call this in the same step."""
        self.ending = reason
        self.control.should_save = self.control.should_training_stop = True

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        """Spend no time on validation when the run is to end, nor on a second checkpoint where the cut epoch counts as ended."""
        if self.ending is not None:
            self.control.should_evaluate, self.control.should_save = False, not self.is_ended
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.is_ended = self.ending is not None

    def end_if_told(self) -> None:
        """End the run if any process was told to; every process has to call this in the same step."""
        if self._is_any(["SIGTERM"] if self.stop_signal.is_received else []):
            self.end("SIGTERM")

    def progress(self) -> dict:
        """Return what else a checkpoint has to keep, as JSON; called on every process, and the main one's is kept."""
        return {}

    def load_progress(self, progress: dict) -> None:
        """Take up what `progress` returned."""

    def _choose_checkpoint(self, wanted: str | bool | None) -> str | None:
        """Choose on one process for all, and check that the checkpoint goes with the data."""
        answer = [None, None]
        if self.is_world_process_zero():
            try:
                chosen = checkpoints.choose_checkpoint(self.args.output_dir, wanted)
                answer = [chosen and str(chosen), self._join_run(chosen)]
            except CheckpointError as error:
                answer = [None, error]
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _join_run(self, checkpoint: Path | None) -> None:
        manifest = checkpoint and checkpoints.read_manifest(checkpoint)
        if not manifest:
            return
        self.run = manifest["run"]
        if None not in (self.data_fingerprint, manifest["data"]) and manifest["data"] != self.data_fingerprint:
            raise CheckpointError(
                f"{checkpoint} was trained on other data or with other steps, so its place in the data is lost. Restore train_mixture, "
                f"max_length and the size of a step, or begin anew from its weights: model_name_or_path={checkpoint}."
            )

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint that appears whole or not at all; where that fails, the run goes on with those it has.

        Every process takes every part, whatever failed before: some parts are collected from all of them.
        """
        self.store_flos()
        staged = checkpoints.staging_folder(self.args.output_dir, self.state.global_step)
        self._note_best(staged.name)
        parts = [partial(self.save_model, _internal_call=True)]
        if not self.args.save_only_model:
            parts += [self._save_optimizer_and_scheduler, self._save_scaler, self._save_rng_state]
        parts += [self._save_progress, self._save_trainer_state]
        failures = [why for part in parts if (why := checkpoints.attempt(partial(part, str(staged))))]
        if not self._is_any(failures):
            failures = self._publish(staged)
        if self._is_any(failures):
            return self._report_unsaved(failures)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(staged.parent.parent / staged.name))
        if self.args.should_save:
            checkpoints.rotate(self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _publish(self, staged: Path) -> list[str]:
        """Publish on the main process, then on the main process of further machines if they share no disk with it."""
        facts = {"run": self.run, "step": self.state.global_step, "world_size": self.args.world_size, "data": self.data_fingerprint}
        failures = []
        for is_my_turn in (self.is_world_process_zero(), self.is_local_process_zero()):
            if is_my_turn and staged.is_dir():
                failures.append(checkpoints.attempt(partial(checkpoints.publish, staged, facts)))
            self.accelerator.wait_for_everyone()
        return [why for why in failures if why]

    def _note_best(self, name: str) -> None:
        """Name the folder of the best checkpoint, which may be the one about to be written."""
        best = f"checkpoint-{self.state.best_global_step}"
        folder = Path(self.args.output_dir) / best
        if self.state.best_global_step and (best == name or folder.is_dir()):
            self.state.best_model_checkpoint = str(folder)

    def _save_progress(self, folder: str) -> None:
        progress = self.progress()
        if self.args.should_save:
            (Path(folder) / PROGRESS_FILE).write_text(json.dumps(progress))

    def _save_trainer_state(self, folder: str) -> None:
        if self.args.should_save:
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(Path(folder) / TRAINER_STATE_NAME))

    def _is_any(self, reasons: list[str]) -> bool:
        """Tell whether any process has a reason."""
        return bool(self.accelerator.gather(torch.tensor([len(reasons)], device=self.args.device)).any())

    def _report_unsaved(self, failures: list[str]) -> None:
        if self.args.should_save:
            checkpoints.clear_staging(self.args.output_dir)
        why, step = failures[0] if failures else "see the log of the other processes", self.state.global_step
        self.state.log_history.append({"unsaved_checkpoint": why, "step": step})
        last = next((path.name for path in checkpoints.list_checkpoints(self.args.output_dir)), "none")
        if failures or self.is_world_process_zero():
            logger.warning("checkpoint-%d could not be written: %s. The run goes on; its last checkpoint is %s", step, why, last)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint) / PROGRESS_FILE).is_file():
            self.load_progress(json.loads(path.read_text()))
