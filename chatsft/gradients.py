"""The gradients of an optimizer step: gathered on each process alone, measured, then averaged over the processes once."""

import contextlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm


def local_gradients(model: nn.Module) -> contextlib.AbstractContextManager:
    """Keep a backward pass on its own process where DDP would make it wait for the others; other models are left as they are."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def average_gradients(model: nn.Module) -> bool:
    """Average the gradients of a DDP model over its processes, in place; a parameter without one counts as zero, as it does in DDP.

    This takes the place of the reduction that DDP makes during the last backward pass: there a process that has run out of memory
    would leave the others waiting. NCCL averages; gloo can only add.

    Returns:
        Whether there was anything to average: not for other models.
    """
    if not isinstance(model, DistributedDataParallel):
        return False
    gradients = [_gradient(param) for param in model.parameters() if param.requires_grad]
    averages = dist.get_backend(model.process_group) == dist.Backend.NCCL
    operation = dist.ReduceOp.AVG if averages else dist.ReduceOp.SUM
    works = [dist.all_reduce(gradient, operation, group=model.process_group, async_op=True) for gradient in gradients]
    for work in works:
        work.wait()
    if not averages:
        torch._foreach_div_(gradients, dist.get_world_size(model.process_group))
    return True


def gradient_norms(groups: Iterable[dict]) -> dict[str, Tensor]:
    """Return the norm of each parameter group's gradients by its name, on the device; of sharded gradients, that of the shards here.

    A group without gradients is left out.
    """
    gradients = {group["name"]: [_local(param.grad) for param in group["params"] if param.grad is not None] for group in groups}
    return {name: get_total_norm(tensors) for name, tensors in gradients.items() if tensors}


def _gradient(param: nn.Parameter) -> Tensor:
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    return param.grad


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
