"""The head as a module that also computes the loss."""

import torch
from torch import nn

from .head_loss import supervised_loss, token_losses


class GPTHead(nn.Linear):
    """Logits, or where labels are given the loss, summed or by position, without the logits of a whole batch (see head_loss).

    The loss is computed inside the head's own forward because FSDP2 holds the whole weight only there.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> "GPTHead":
        """Take over the weight of a plain linear layer without bias."""
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight = linear.weight
        return head

    def forward(
        self,
        hidden_states: torch.Tensor,
        shift_labels: torch.Tensor | None = None,
        softcap: float | None = None,
        positions: torch.Tensor | None = None,
        reduce_loss: bool = True,
    ) -> torch.Tensor:
        if shift_labels is None:
            return super().forward(hidden_states)
        compute = supervised_loss if reduce_loss else token_losses
        return compute(hidden_states, self.weight, shift_labels, softcap, positions)
