"""The head and its cross-entropy on supervised positions only, in chunks, without ever holding (tokens x vocabulary) logits."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

CHUNK = 8192
"""Most positions in a chunk: the logits of one chunk are the memory the loss takes."""

IGNORED = -100
"""Label of a position that is not trained on."""


def chunk_size(num_tokens: int) -> int:
    """Return how many positions of a batch of `num_tokens` are taken at a time; fewer in a small batch, where padding would cost more.

    >>> chunk_size(65536), chunk_size(8192)
    (8192, 2048)
    """
    return min(CHUNK, max(1024, num_tokens // 4))


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
        positions: indices into the flattened positions that carry labels, each once, padded with -1; found from the labels when
            None, which on a GPU makes the host wait. A multiple of `chunk_size` is computed fastest.

    Returns:
        A float32 scalar, 0 where no position is supervised.
    """
    hidden_states, positions, targets = _supervised(hidden_states, shift_labels, positions)
    return _HeadLoss.apply(hidden_states, weight, positions, targets, softcap)


@torch.no_grad()
def token_losses(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    shift_labels: torch.Tensor,
    softcap: float | None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of each supervised position, (positions,) in float32, without gradients; 0 where padded.

    Takes what `supervised_loss` takes.
    """
    hidden_states, positions, targets = _supervised(hidden_states, shift_labels, positions)
    weight = weight.to(hidden_states.dtype)
    losses = [
        _losses(hidden_states[places] @ weight.t(), labels, softcap)
        for places, labels in zip(positions.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(losses)


def _supervised(
    hidden_states: torch.Tensor, shift_labels: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return flat hidden states, the positions with labels, and these labels."""
    labels = shift_labels.flatten()
    if positions is None:
        positions = (labels != IGNORED).nonzero().flatten()
    return hidden_states.flatten(0, 1), positions, torch.where(positions >= 0, labels[positions], IGNORED)


class _HeadLoss(torch.autograd.Function):
    """Summed softcapped cross-entropy whose gradient is formed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, positions, targets, softcap):
        compute_weight = weight.to(hidden.dtype)
        needs_weight_grad = ctx.needs_input_grad[1]  # a frozen head needs none
        needs_grad = ctx.needs_input_grad[0] or needs_weight_grad
        size = chunk_size(len(hidden))
        loss_and_gradient = _compiled_loss_and_gradient() if hidden.is_cuda and len(positions) % size == 0 else _loss_and_gradient
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = hidden.new_zeros(len(hidden) + 1, hidden.shape[1]) if needs_grad else None  # the last row is that of position -1
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight_grad else None
        for places, labels in zip(positions.split(size), targets.split(size), strict=True):
            chunk = hidden[places]
            logits = chunk @ compute_weight.t()
            if needs_grad:
                part, grad_logits = loss_and_gradient(logits, labels, softcap)
                grad_hidden[places] = grad_logits @ compute_weight
                if needs_weight_grad:
                    _add_product(grad_weight, grad_logits.t(), chunk)
            else:
                part = _losses(logits, labels, softcap).sum()
            loss += part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        # 1 / tokens in bfloat16 would be up to 0.4 % off, for the whole trunk alike
        grad_hidden = (grad_hidden[:-1].float() * grad_loss).to(grad_hidden.dtype)
        grad_weight = None if grad_weight is None else (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to a float32 total; on a GPU without rounding the product to the factors' dtype on the way."""
    if total.is_cuda and left.dtype != total.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


def _losses(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None) -> torch.Tensor:
    logits = logits.float()
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(capped, targets, ignore_index=IGNORED, reduction="none")


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, softcap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of a chunk and its gradient with respect to the logits before the cap.

    With z = cap * tanh(y / cap), d loss / d y = (softmax(z) - onehot) * (1 - tanh(y / cap)^2). Capped logits need no maximum taken
    off before exp, and a sigmoid is the tanh that compiles to two fast operations; both spare a third of the time.
    """
    logits, dtype = logits.float(), logits.dtype
    tanh = None if softcap is None else 2 * torch.sigmoid(logits * (2 / softcap)) - 1
    capped = logits if softcap is None else softcap * tanh
    is_small = softcap is not None and softcap <= 60
    normalizer = capped.exp().sum(-1, keepdim=True).log() if is_small else capped.logsumexp(-1, keepdim=True)
    supervised = targets != IGNORED
    loss = ((normalizer - capped.gather(1, targets.clamp(min=0)[:, None]))[:, 0] * supervised).sum()
    onehot = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = torch.exp(capped - normalizer) - onehot.float()
    if tanh is not None:
        gradient = gradient * (1 - tanh * tanh)
    return loss, (gradient * supervised[:, None]).to(dtype)


@cache
def _compiled_loss_and_gradient() -> Callable:
    """Compile once, on first use: the chunks of every batch have one shape."""
    return torch.compile(_loss_and_gradient, dynamic=False)
