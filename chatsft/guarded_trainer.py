"""transformers' Trainer with steps that are made on every process or on none, and a log of what they did."""

import logging
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from chatsft.data.packing import ConversationRows
from chatsft.faults import FAULTS, STOP, Agreement, StepGuard, describe_faults, faults_by_process
from chatsft.gradients import GradientAverager, gradient_norms, local_gradients
from chatsft.resumable_trainer import ResumableTrainer
from chatsft.step_log import StepLog

logger = logging.getLogger(__name__)


@dataclass
class Step:
    """An optimizer step whose verdict is on its way from the device, with what the log says of it (see StepLog.add)."""

    number: int
    agreement: Agreement
    loss: Tensor
    supervised_tokens: Tensor
    norms: dict[str, Tensor]
    is_whole: bool


class GuardedTrainer(ResumableTrainer):
    """Leave out, on every process, a step that met a NaN or did not fit in memory.

    Such a step changes neither weights nor momenta nor optimizer counters; the schedule and the place in the data move on. More than
    `max_skipped_in_a_row` of them end the run with a checkpoint. The host learns of a step before it makes the next one, and before it
    logs, saves, evaluates or ends.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        can_drop = not self.is_deepspeed_enabled and self.accelerator.scaler is None
        self.guard = StepGuard(self.accelerator, can_drop, self.is_sharded)
        self.step_tokens = torch.zeros((), dtype=torch.long)
        self.averager: GradientAverager | None = None
        self.unread: Step | None = None
        self._begin_run()

    def train(self, *args, **kwargs):
        if isinstance(self.model, FSDPModule):
            raise ValueError("FSDP has shared out the model of this trainer in the run before, and does so once. Make a new trainer.")
        self._read_verdict()  # of the last step before an error, where one ended the run before
        self._begin_run()
        return super().train(*args, **kwargs)

    def _begin_run(self) -> None:
        self.step_log, self.skipped_in_a_row = StepLog(self.args.device), 0

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Take the micro-batches of one optimizer step and count what they train."""
        batches, supervised_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.guard.begin_step()
        if supervised_tokens is not None:
            self.step_tokens = supervised_tokens.long()
        return batches, supervised_tokens

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Compute a micro-batch; after the last of a step, make the step on every process or on none.

        Returns:
            The loss of the whole step after its last micro-batch; zero before, and for a step that is left out.
        """
        if self.averager is None:
            self.averager = GradientAverager(model)
        self.averager.begin(is_last=self.accelerator.sync_gradients)
        with local_gradients(model):
            self.guard.attempt(partial(self.compute_micro_batch, model, inputs, num_items_in_batch))
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(self.guard.loss)
        self.averager.finish()
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()
        norms = {name: norm / scale for name, norm in gradient_norms(self.optimizer.param_groups).items()}
        self._read_verdict()
        agreement = self.guard.agree(norms, self.stop_signal.is_received)
        is_whole = self._place_in_epoch(self.state.global_step) + 1 < self._steps_per_epoch()
        self.unread = Step(self.state.global_step, agreement, self.guard.loss, self.step_tokens, norms, is_whole)
        if not self.guard.can_drop:
            return self.guard.loss
        self.optimizer.optimizer.found_inf = agreement.is_faulty
        return torch.where(agreement.is_faulty > 0, 0.0, self.guard.loss)

    def compute_micro_batch(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Run forward and backward pass of a micro-batch and return its loss, ()."""
        return super().training_step(model, inputs, num_items_in_batch)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        control = self.control
        if (
            control.should_log
            or control.should_save
            or control.should_evaluate
            or control.should_training_stop
            or control.should_epoch_stop
        ):
            self._read_verdict()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._read_verdict()  # what is told of a step comes before what is logged after it
        super().log(logs, start_time)

    def _read_verdict(self) -> None:
        """Find out about the last step and note it; the order and the time are the same on every process."""
        step, self.unread = self.unread, None
        if step is None:
            return
        met = step.agreement.read()
        if any(bits & STOP for bits in met):
            self.end("SIGTERM")
        if any(bits & fault for bits in met for fault in FAULTS):
            self._note_left_out(step, met)
        else:
            self.step_log.add(step.loss, step.supervised_tokens, step.norms, step.is_whole)
            self.skipped_in_a_row = 0

    def _note_left_out(self, step: Step, met: list[int]) -> None:
        self.optimizer.optimizer.forget_step()
        self.step_log.skipped_steps += 1
        self.skipped_in_a_row += 1
        faults, rows = faults_by_process(met), self._rows_of_step(step.number)
        named = self.train_dataset.name_conversations(rows) if rows and isinstance(self.train_dataset, ConversationRows) else []
        entry = {"skipped_step": {str(process): fault for process, fault in faults.items()}, "rows": rows, "conversations": named}
        self.state.log_history.append({**entry, "step": step.number + 1})
        words = describe_faults(faults, len(met))
        if self.is_world_process_zero():
            where = f"Its rows were {rows[0]} to {rows[-1]} ({list_start(named)})" if rows else "Its rows are unknown"
            logger.warning("Step %05d was left out on every process: %s. %s", step.number, words, where)
        if self.skipped_in_a_row > self.args.max_skipped_in_a_row:
            self.end(f"{self.skipped_in_a_row} steps in a row were left out, the last one because of {words}")
            self.skipped_in_a_row = 0  # whoever goes on all the same gets as many again

    def _rows_of_step(self, number: int) -> list[int] | None:
        """Number the rows of a step over all processes; None where they are not taken in order."""
        if self.args.train_sampling_strategy != "sequential":
            return None
        size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        first = self._place_in_epoch(number) * size
        return list(range(first, min(first + size, len(self.train_dataset))))

    def _place_in_epoch(self, number: int) -> int:
        return number % self._steps_per_epoch()

    def _steps_per_epoch(self) -> int:
        return -(-len(self.callback_handler.train_dataloader) // self.args.gradient_accumulation_steps)

    def progress(self) -> dict:
        return self.step_log.state(self.accelerator) | {"skipped_in_a_row": self.skipped_in_a_row}

    def load_progress(self, progress: dict) -> None:
        self.step_log.load_state(progress, self.accelerator)
        self.skipped_in_a_row = progress.get("skipped_in_a_row", 0)


def list_start(names: list[str]) -> str:
    """Write the first of many names.

    >>> list_start(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "") or "unnamed"
