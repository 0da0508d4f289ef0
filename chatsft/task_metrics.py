"""Scores on tasks while a model is trained: before the first update, every so many, and after the last."""

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from chatsft.arguments import RecipeError, RunArguments
from chatsft.evaluation import EvaluationOptions, chatcore, evaluate_task
from chatsft.evaluation.model_copy import copy_for_evaluation
from chatsft.evaluation.task_selection import select_tasks
from chatsft.resumable_trainer import ResumableTrainer
from chatsft.tasks import Task
from chatsft.throughput import ThroughputMeter


def load_eval_tasks(names: Sequence[str] | None, data_root: str | None, in_4bit: bool) -> dict[str, Task]:
    """Load the test sets of eval_tasks; none where none are named."""
    if names and in_4bit:
        raise RecipeError("eval_tasks cannot copy a base of four bits to evaluate it. Leave it out and run chatsft.eval on output_dir.")
    return select_tasks(names, data_root) if names else {}


class TaskMetrics(TrainerCallback):
    """Evaluate tasks every `eval_metrics_every` updates, as nanochat does at the top of its loop: after the validation loss.

    A copy of the model is evaluated and the random state put back, so training goes on as if nothing had happened. The figures go
    through the trainer's log, to trainer_state.json and to wherever `report_to` sends them, and to the console in nanochat's form.
    """

    def __init__(
        self,
        trainer: ResumableTrainer,
        tasks: Mapping[str, Task],
        tokenizer: PreTrainedTokenizerBase,
        throughput: ThroughputMeter | None = None,
    ):
        self.trainer, self.tasks, self.tokenizer, self.throughput = trainer, tasks, tokenizer, throughput
        self.last_step: int | None = None

    def on_step_begin(self, args: RunArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.global_step % args.eval_metrics_every == 0:
            self.evaluate(args, state)

    def on_train_end(self, args: RunArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.trainer.ending is None:  # a run that is told to stop has no time for it
            self.evaluate(args, state)

    def on_log(self, args: RunArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs) -> None:
        if state.is_world_process_zero and (line := metrics_line(state.global_step, logs)):
            print(line, flush=True)

    def evaluate(self, args: RunArguments, state: TrainerState) -> None:
        """Log the scores of the model as it is, once for each number of updates."""
        if state.global_step == self.last_step:
            return
        self.last_step, start = state.global_step, time.perf_counter()
        with kept_random_state(args.device):
            figures = self.measure(args)
        clear_device_cache()
        if self.throughput is not None:
            self.throughput.leave_out(time.perf_counter() - start)
        self.trainer.log(figures)

    def measure(self, args: RunArguments) -> dict[str, float]:
        options = EvaluationOptions(max_problems=args.eval_max_problems)
        trained = self.trainer.accelerator.unwrap_model(self.trainer.model)
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        model = copy_for_evaluation(trained, dtype)
        accuracies = {name: evaluate_task(name, task, model, self.tokenizer, options).accuracy for name, task in self.tasks.items()}
        scores = {metric_name(name): accuracy for name, accuracy in accuracies.items()}
        return scores | {name.lower().replace(" ", "_"): mean for name, mean in chatcore(accuracies).items()}


def metric_name(task: str) -> str:
    """Return what a task's accuracy is called in the log.

    >>> metric_name("ARC-Easy")
    'arc_easy_acc'
    """
    return re.sub(r"\W+", "_", task.lower()) + "_acc"


def metrics_line(global_step: int, logs: Mapping[str, float]) -> str | None:
    """Write a log entry of task metrics as nanochat does; None for another entry.

    >>> metrics_line(200, {"mmlu_acc": 0.234, "arc_easy_acc": 0.421, "epoch": 0.3})
    'Step 00200 | mmlu_acc: 0.234000, arc_easy_acc: 0.421000'
    """
    scores = {name: value for name, value in logs.items() if name.endswith("_acc") or name.startswith("chatcore")}
    return f"Step {global_step:05d} | " + ", ".join(f"{name}: {value:.6f}" for name, value in scores.items()) if scores else None


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Put every random state that training draws from back to what it was."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
