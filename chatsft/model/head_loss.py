"""The head and its cross-entropy on supervised positions only, in chunks, without ever holding (tokens x vocabulary) logits."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

CHUNK = 4096
"""Positions per chunk: the float32 logits of one chunk are the memory the loss takes."""

IGNORED = -100
"""Label of a position that is not trained on."""


def supervised_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    shift_labels: torch.Tensor,
    softcap: float | None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the summed cross-entropy over the supervised positions.

    Args:
        hidden_states: (batch, length, width), the normed output of the trunk.
        weight: (vocabulary, width) of the head.
        shift_labels: (batch, length), the id each position should predict, -100 where none.
        softcap: logits become softcap * tanh(logits / softcap); None leaves them.
        positions: indices into the flattened positions that carry labels, padded with -1; found from the labels when None,
            which on a GPU makes the host wait.

    Returns:
        A float32 scalar, 0 where no position is supervised.
    """
    hidden_states, labels = hidden_states.flatten(0, 1), shift_labels.flatten()
    if positions is None:
        positions = (labels != IGNORED).nonzero().flatten()
    targets = torch.where(positions >= 0, labels[positions], IGNORED)
    return _HeadLoss.apply(hidden_states[positions], weight, targets, softcap)


class _HeadLoss(torch.autograd.Function):
    """Summed softcapped cross-entropy whose gradient is formed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, softcap):
        compute_weight = weight.to(hidden.dtype)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss_and_gradient = _compiled_loss_and_gradient() if hidden.is_cuda and len(hidden) % CHUNK == 0 else _loss_and_gradient
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.zeros_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        for start in range(0, len(hidden), CHUNK):
            chunk, labels = hidden[start : start + CHUNK], targets[start : start + CHUNK]
            if needs_grad:
                part, grad_logits = loss_and_gradient(chunk @ compute_weight.t(), labels, softcap)
                grad_hidden[start : start + CHUNK] = grad_logits @ compute_weight
                grad_weight += grad_logits.t() @ chunk
            else:
                part = _loss(chunk @ compute_weight.t(), labels, softcap)
            loss += part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        # 1 / tokens in bfloat16 would be up to 0.4 % off, for the whole trunk alike
        return (grad_hidden.float() * grad_loss).to(grad_hidden.dtype), (grad_weight * grad_loss).to(ctx.weight_dtype), None, None


def _loss(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None) -> torch.Tensor:
    logits = logits.float()
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(capped, targets, ignore_index=IGNORED, reduction="sum")


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of a chunk and its gradient with respect to the logits before the cap.

    With z = cap * tanh(y / cap), d loss / d y = (softmax(z) - onehot) * (1 - tanh(y / cap)^2).
    """
    logits, dtype = logits.float(), logits.dtype
    tanh = None if softcap is None else torch.tanh(logits / softcap)
    capped = logits if softcap is None else softcap * tanh
    supervised = targets != IGNORED
    index = targets.clamp(min=0)[:, None]
    log_normalizer = torch.logsumexp(capped, dim=-1, keepdim=True)
    loss = ((log_normalizer - capped.gather(1, index))[:, 0] * supervised).sum()
    gradient = torch.exp(capped - log_normalizer)
    gradient = gradient.scatter_add(1, index, -torch.ones_like(index, dtype=gradient.dtype))
    if tanh is not None:
        gradient = gradient * (1 - tanh * tanh)
    return loss, (gradient * supervised[:, None]).to(dtype)


@cache
def _compiled_loss_and_gradient() -> Callable:
    """Compile once, on first use: the chunks of every batch have one shape."""
    return torch.compile(_loss_and_gradient, dynamic=False)
