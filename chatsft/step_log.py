"""What the optimizer steps since the last log did: sums that stay on the device until they are read."""

import math

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

GIB = 2**30


class StepLog:
    """Loss, tokens (on this process), supervised tokens, gradient norms and dropped steps between two logs.

    The loss is the mean over the steps that were made. `skipped_steps` counts the dropped ones of the whole run. The sums go into
    checkpoints, so that a run resumed between two logs logs what it would have logged.
    """

    def __init__(self, device: torch.device):
        self.device, self.skipped_steps = device, 0
        self.clear()

    def clear(self) -> None:
        self.loss = torch.zeros((), device=self.device)
        self.supervised_tokens = torch.zeros((), dtype=torch.long, device=self.device)
        self.fewest, self.most = None, None
        self.tokens, self.num_steps, self.norms = 0, 0, {}

    def add(self, loss: Tensor, supervised_tokens: Tensor, norms: dict[str, Tensor], is_whole: bool = True) -> None:
        """Add a step that was made.

        Args:
            loss: on this process.
            supervised_tokens: over all processes.
            norms: of the gradients, by parameter group.
            is_whole: False for the last step of an epoch, which may hold less than the others and says nothing about their sizes.
        """
        self.loss = self.loss + loss
        self.supervised_tokens = self.supervised_tokens + supervised_tokens
        self.num_steps, self.norms = self.num_steps + 1, norms
        if is_whole:
            self.fewest = supervised_tokens if self.fewest is None else torch.minimum(self.fewest, supervised_tokens)
            self.most = supervised_tokens if self.most is None else torch.maximum(self.most, supervised_tokens)

    def read(self, accelerator: Accelerator, is_sharded: bool) -> dict[str, float]:
        """Return the figures and begin anew; `loss` is missing where no step was made. All processes read at the same time."""
        tokens = {"tokens": self.tokens * accelerator.num_processes, "supervised_tokens": int(self.supervised_tokens)}
        figures = tokens | {"skipped_steps": self.skipped_steps}
        if self.num_steps:
            figures["loss"] = accelerator.gather(self.loss[None]).mean().item() / self.num_steps
        if self.fewest is not None:
            figures |= {"supervised_tokens_min": int(self.fewest), "supervised_tokens_max": int(self.most)}
        for name, norm in self.norms.items():
            squares = accelerator.reduce(norm.square(), "sum") if is_sharded else norm.square()
            if math.isfinite(root := squares.sqrt().item()):  # gradients that are scaled may overflow, and JSON has no infinity
                figures[f"grad_norm_{name}"] = root
        self.clear()
        return figures | {"memory_gib": round(memory_in_use() / GIB, 3)}

    def state(self, accelerator: Accelerator) -> dict:
        """Return the sums for a checkpoint, the losses by process."""
        return {
            "losses": accelerator.gather(self.loss[None]).tolist(),
            "supervised_tokens": int(self.supervised_tokens),
            "range": None if self.fewest is None else [int(self.fewest), int(self.most)],
            "tokens": self.tokens,
            "num_steps": self.num_steps,
            "skipped_steps": self.skipped_steps,
        }

    def load_state(self, state: dict, accelerator: Accelerator) -> None:
        """Take up the sums of a checkpoint; on another number of processes each gets the mean of the losses, which is what is logged."""
        losses = torch.tensor(state["losses"], device=self.device)
        self.loss = losses[accelerator.process_index] if len(losses) == accelerator.num_processes else losses.mean()
        self.supervised_tokens = torch.tensor(state["supervised_tokens"], device=self.device)
        if state["range"] is not None:
            self.fewest, self.most = torch.tensor(state["range"], device=self.device)
        self.tokens = state["tokens"]
        self.num_steps, self.skipped_steps = state["num_steps"], state["skipped_steps"]


def memory_in_use() -> int:
    """Return the most bytes that tensors have taken on this process's GPU, or without one the memory of the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
