"""Forward and backward pass of a micro-batch as one CUDA graph: the host launches it at once, in place of a thousand kernels in turn.

It pays where the host is slower than the GPU: small models, short rows, slow processors. What is captured is what would have run, so
losses and gradients are the same. It costs memory: activations and gradients keep their places between steps, evaluation included.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

WARM_UP = 3
"""Batches of one shape that run as they are: after these, everything is compiled, tuned and allocated."""

MAX_GRAPHS = 4
"""Shapes that are captured; each keeps its gradients and its activations."""

Compute = Callable[[dict, Tensor | None], Tensor]


def record(run: Callable[[], None]) -> Callable[[], None]:
    """Capture what a function launches, and return what launches it again."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the thread that pins batches goes on meanwhile
        run()
    return graph.replay


class CapturedStep:
    """Compute micro-batches by replaying CUDA graphs, one for each shape that comes often; other shapes run as they are.

    Args:
        compute: runs forward and backward pass, from the inputs of the model and what the loss is divided by to the loss, (). It must
            leave the device alone but for launching work, and depend on the values of tensors on the device alone.
        params: the parameters that may get gradients.
    """

    def __init__(self, compute: Compute, params: Sequence[nn.Parameter]):
        self.compute, self.params = compute, list(params)
        self.seen, self.graphs, self.max_graphs = Counter(), {}, MAX_GRAPHS

    def __call__(self, inputs: dict, divisor: Tensor | None, accumulation_steps: int) -> Tensor:
        """Compute a micro-batch and add its gradients to those that are there.

        Args:
            accumulation_steps: of the current optimizer step; a number that the computation may depend on.
        """
        key = (*map(_describe, inputs.items()), _describe(("divisor", divisor)), accumulation_steps)
        if key not in self.graphs and not self._capture(key, inputs, divisor):
            return self.compute(inputs, divisor)
        return self.graphs[key].replay(inputs, divisor)

    def release(self) -> None:
        """Give back the memory that the graphs hold; shapes that come again are captured anew."""
        self.seen.clear()
        self.graphs.clear()

    def _capture(self, key: tuple, inputs: dict, divisor: Tensor | None) -> bool:
        """Capture a shape that has come often enough, and tell whether that was done."""
        self.seen[key] += 1
        if self.seen[key] <= WARM_UP or len(self.graphs) >= self.max_graphs:
            return False
        try:
            self.graphs[key] = StepGraph(self.compute, self.params, inputs, divisor)
        except torch.OutOfMemoryError as error:
            self.max_graphs = len(self.graphs)
            logger.warning("no memory is left to capture a step, so this shape runs as it is: %s", str(error).splitlines()[0])
            return False
        return True


class StepGraph:
    """The graph of one shape, with the tensors that it reads and writes."""

    def __init__(self, compute: Compute, params: list[nn.Parameter], inputs: dict, divisor: Tensor | None):
        self.params = params
        self.inputs = {name: value.clone() if torch.is_tensor(value) else value for name, value in inputs.items()}
        self.divisor = None if divisor is None else divisor.clone()
        gradients = self._take_gradients()
        try:
            self.launch = record(lambda: self._run(compute))
        finally:
            self.gradients = self._take_gradients()
            self._put_gradients(gradients)

    def _run(self, compute: Compute) -> None:
        self.loss = compute(dict(self.inputs), self.divisor)

    def replay(self, inputs: dict, divisor: Tensor | None) -> Tensor:
        """Compute a batch; what the last replay wrote is overwritten."""
        earlier = [None if gradient is None else gradient.clone() for gradient in self._take_gradients()]
        for name, value in inputs.items():
            if torch.is_tensor(value):
                self.inputs[name].copy_(value, non_blocking=True)
        if divisor is not None:
            self.divisor.copy_(divisor, non_blocking=True)
        self.launch()
        for new, there in zip(self.gradients, earlier, strict=True):
            if new is not None and there is not None:
                new += there
        self._put_gradients([there if new is None else new for new, there in zip(self.gradients, earlier, strict=True)])
        return self.loss.clone()

    def _take_gradients(self) -> list[Tensor | None]:
        gradients = [param.grad for param in self.params]
        self._put_gradients([None] * len(gradients))
        return gradients

    def _put_gradients(self, gradients: list[Tensor | None]) -> None:
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient


def _describe(entry: tuple) -> tuple:
    """Name what a graph depends on: shape and type of a tensor, and any other value itself.

    >>> _describe(("input_ids", torch.zeros(1, 8, dtype=torch.long))), _describe(("max_length_q", 8))
    (('input_ids', torch.Size([1, 8]), torch.int64), ('max_length_q', 8))
    """
    name, value = entry
    return (name, value.shape, value.dtype) if torch.is_tensor(value) else (name, value)
