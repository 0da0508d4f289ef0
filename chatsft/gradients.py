"""The gradients of an optimizer step: gathered on each process, averaged during the last backward pass, measured."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

BUCKET_BYTES = 25 * 2**20
"""What is sent at a time, as in DDP."""


class GradientAverager:
    """Average the gradients of a DDP model over its processes as they become ready in the last backward pass of a step.

    DDP does the same, but a process whose pass breaks off, for lack of memory, leaves the others waiting for ever. Here it sends what is
    missing from `finish`, so that every process takes part in every exchange whatever happened to it. Other models have nothing to
    average: their averager does nothing.

    All processes send in one order: the first step sends everything at its end, and notes the order in which the gradients of the main
    process became ready, which holds from then on.
    """

    def __init__(self, model: nn.Module):
        is_ddp = isinstance(model, DistributedDataParallel)
        self.params = [param for param in model.parameters() if param.requires_grad] if is_ddp else []
        self.is_last, self.buckets, self.is_ordered = False, [], False
        if self.params:
            self.group = model.process_group
            averages = dist.get_backend(self.group) == dist.Backend.NCCL  # gloo can only add
            self.operation, self.divisor = (dist.ReduceOp.AVG, 1) if averages else (dist.ReduceOp.SUM, self.group.size())
            self._plan(range(len(self.params)))
        for index, param in enumerate(self.params):
            param.register_post_accumulate_grad_hook(partial(self._note, index))

    def begin(self, is_last: bool) -> None:
        """Begin the backward pass of a micro-batch; gradients are sent in that of the last one."""
        self.is_last, self.ready, self.works = is_last, [], []
        self.missing = [set(bucket) for bucket in self.buckets]

    def finish(self) -> None:
        """Send what has not been sent and wait for all of it; a gradient that there is not counts as zero, as it does in DDP."""
        self.is_last = False
        while len(self.works) < len(self.buckets):
            self._send()
        for work in self.works:
            work.wait()
        if self.params and self.divisor > 1:
            torch._foreach_div_([param.grad for param in self.params], self.divisor)
        if self.params and not self.is_ordered:
            self._agree_on_order()

    def _note(self, index: int, param: nn.Parameter) -> None:
        if not self.is_last:
            return
        self.ready.append(index)
        self.missing[self.places[index]].discard(index)
        while self.is_ordered and len(self.works) < len(self.buckets) and not self.missing[len(self.works)]:
            self._send()

    def _send(self) -> None:
        options = dist.AllreduceCoalescedOptions()
        options.reduceOp = self.operation
        gradients = [_gradient(self.params[index]) for index in self.buckets[len(self.works)]]
        self.works.append(self.group.allreduce_coalesced(gradients, options))

    def _agree_on_order(self) -> None:
        """Take the main process's order, if all of its gradients became ready."""
        order = [self.ready]
        dist.broadcast_object_list(order, group=self.group, group_src=0)
        if sorted(order[0]) == list(range(len(self.params))):
            self._plan(order[0])
            self.is_ordered = True

    def _plan(self, order: Iterable[int]) -> None:
        """Cut an order into buckets of one data type."""
        self.buckets, room, dtype = [], 0, None
        for index in order:
            param = self.params[index]
            if room <= 0 or param.dtype != dtype:
                self.buckets.append([])
                room, dtype = BUCKET_BYTES, param.dtype
            self.buckets[-1].append(index)
            room -= param.numel() * param.element_size()
        self.places = {index: place for place, bucket in enumerate(self.buckets) for index in bucket}


@contextlib.contextmanager
def local_gradients(model: nn.Module) -> Iterator[None]:
    """Keep DDP from averaging gradients by itself, and the compiler from cutting layers along its buckets; leave other models as they are.

    The compiler would cut so that DDP can send a part of a layer's gradients early, and could no longer fuse across the cuts: the
    activations there would be written once more for the backward pass. Here gradients are sent layer by layer anyway.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync(), torch._dynamo.config.patch(optimize_ddp=False):
        yield


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
