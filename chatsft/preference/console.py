"""What a run prints as it goes."""

from transformers import TrainerCallback, TrainerControl, TrainerState

FIGURES = {  # label: key in TRL's log
    "reward": "reward",
    "validation reward": "eval_reward",
    "validation loss": "eval_loss",
    "loss": "loss",
    "chosen over rejected": "rewards/accuracies",
    "validation chosen over rejected": "eval_rewards/accuracies",
    "tokens": "completions/mean_length",
    "entropy": "entropy",
}


class RewardLines(TrainerCallback):
    """Print a line for every log."""

    def on_log(self, args, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs) -> None:
        if state.is_world_process_zero and (line := reward_line(state.global_step, logs)):
            print(line, flush=True)


def reward_line(global_step: int, logs: dict) -> str | None:
    """Write a log entry as one line; None for an entry that is neither of a step nor of an evaluation.

    An update is numbered by the updates before it.

    >>> reward_line(8, {"loss": 0.01, "reward": 0.375, "completions/mean_length": 21.5})
    'Step 00007 | reward: 0.3750 | loss: 0.0100 | tokens: 21.5000'
    """
    figures = [f"{label}: {logs[key]:.4f}" for label, key in FIGURES.items() if key in logs]
    if not figures or "train_runtime" in logs:
        return None
    is_update = "loss" in logs
    return " | ".join([f"Step {global_step - is_update:05d}", *figures])
