"""The head and its loss, forward and backward: ours beside TRL's, Liger's and plain PyTorch.

    python -m tests.benchmarks.heads [--tokens 65536] [--vocabulary 65536] [--widths 768 1280]

Half of the tokens are supervised. Hidden states in bfloat16, weights in float32, as in training; logits are capped at 15. Prints the time
of a forward and backward pass, the memory it takes at its peak beside its inputs, and how far the weight's gradient is from that of
float32 logits, of the first 2,048 supervised tokens, in parts of its norm. TRL and Liger cast the weights for every chunk; "_cast" hands
them weights that were cast once. Needs a GPU. A head that fails, or is not installed, prints "error", and the next one runs.
"""

import argparse
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chatsft.model.head_loss import chunk_size, supervised_loss
from tests.benchmarks.training import attempt

SOFTCAP, FEW = 15.0, 2048
TRL_CHUNK = 32768
"""Vocabulary at a time, what TRL 1.16 takes itself."""

Head = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    return supervised_loss(hidden[None], weight, labels[None], SOFTCAP, positions)


def trl(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    outputs = ChunkedLogProbFunction.apply(hidden[positions], weight, None, labels[positions], 1.0, TRL_CHUNK, SOFTCAP, 1.0, ())
    return -outputs[0].sum()


def trl_cast(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    return trl(hidden, weight.to(hidden.dtype), labels, positions)


def liger(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=SOFTCAP, accum_dtype=torch.float32)
    return loss(weight, hidden[positions], labels[positions])


def liger_cast(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    return liger(hidden, weight.to(hidden.dtype), labels, positions)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    logits = F.linear(hidden[positions], weight).float()
    return F.cross_entropy(SOFTCAP * torch.tanh(logits / SOFTCAP), labels[positions], reduction="sum")


def measure(head: Head, inputs: tuple[Tensor, ...], repeats: int) -> dict:
    """Time a forward and backward pass, read the memory that it adds at its peak, and see how right the gradient is."""

    def run() -> None:
        for tensor in inputs[:2]:
            tensor.grad = None
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
            head(*inputs).backward()

    for _ in range(3):
        run()
    for tensor in inputs[:2]:
        tensor.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    memory = (torch.cuda.max_memory_allocated() - before) / 2**30
    error = float(f"{gradient_error(head, inputs):.1e}")
    return {"ms": round(start.elapsed_time(end) / repeats, 2), "gib": round(memory, 2), "gradient_error": error}


def gradient_error(head: Head, inputs: tuple[Tensor, ...]) -> float:
    """Compare the weight's gradient of a few tokens with that of float32 logits."""
    hidden, weight, labels, positions = inputs
    gradients = []
    for function, dtype in ((head, torch.bfloat16), (plain, torch.float32)):
        weight.grad = None
        with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            states = hidden.detach().to(dtype).requires_grad_()  # Liger has no gradient of the weight without one of the states
            function(states, weight, labels, positions[:FEW]).backward()
        gradients.append(weight.grad)
    return ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1280])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    for width in options.widths:
        hidden = torch.randn(options.tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = (0.1 * torch.randn(options.vocabulary, width, device="cuda")).requires_grad_()
        labels = torch.randint(options.vocabulary, (options.tokens,), device="cuda")
        positions = torch.arange(0, options.tokens, 2, device="cuda")
        assert len(positions) % chunk_size(options.tokens) == 0
        inputs = (hidden, weight, labels, positions)
        for head in (ours, trl, trl_cast, liger, liger_cast, plain):
            figures = attempt(measure, {"head": head, "inputs": inputs, "repeats": options.repeats})
            print(json.dumps({"head": head.__name__, "width": width} | figures), flush=True)


if __name__ == "__main__":
    main()
