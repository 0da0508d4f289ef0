"""What a run prints, and the evaluation after its last step."""

import logging
import warnings

import datasets
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging


class ConsoleCallback(TrainerCallback):
    """Print a line for every log, in nanochat's form."""

    def on_log(self, args, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs) -> None:
        if state.is_world_process_zero and (line := log_line(state.global_step, logs)):
            print(line, flush=True)


def log_line(global_step: int, logs: dict) -> str | None:
    """Write a log entry as one line; None for an entry that is neither of a step nor of an evaluation.

    An update is numbered as nanochat numbers it, by the updates before it.

    >>> log_line(101, {"loss": 1.8234561, "lr_multiplier": 0.98, "supervised_tokens": 45231, "tokens_per_second": 2000.0})
    'Step 00100 | Training loss: 1.823456 | lrm: 0.980000 | num_tokens: 45,231 | tok/s: 2,000'
    """
    if "eval_loss" in logs:
        return f"Step {global_step:05d} | Validation loss: {logs['eval_loss']:.6f}"
    if "lr_multiplier" not in logs:
        return None
    if "loss" not in logs:
        return f"Step {global_step - 1:05d} | left out, as were all since the last line | skipped: {logs['skipped_steps']}"
    parts = [
        f"Step {global_step - 1:05d}",
        f"Training loss: {logs['loss']:.6f}",
        f"lrm: {logs['lr_multiplier']:.6f}",
        f"num_tokens: {logs['supervised_tokens']:,}",
        f"tok/s: {logs['tokens_per_second']:,.0f}",
    ]
    parts += [f"mfu: {logs['mfu']:.3f}"] if "mfu" in logs else []
    parts += [f"skipped: {logs['skipped_steps']}"] if logs.get("skipped_steps") else []
    return " | ".join(parts)


def leave_console(trainer: Trainer) -> None:
    """Take away what Trainer itself prints: dictionaries, a progress bar, and in a notebook a table."""
    for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(callback)


class FinalEvaluation(TrainerCallback):
    """Evaluate after the last update too, wherever eval_steps falls; by epochs Trainer does so itself."""

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if args.eval_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_evaluate = True


def set_verbosity(is_main_process: bool = True) -> None:
    """Leave the console to the run's own lines; what was read from where is told by one process."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # accelerate's, of its own call
    logging.getLogger("huggingface_hub").propagate = False  # it writes its warnings itself
    logging.getLogger("chatsft").setLevel(logging.INFO if is_main_process else logging.WARNING)
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
