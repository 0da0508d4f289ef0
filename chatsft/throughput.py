"""How fast a run goes: tokens per second and model FLOP utilisation."""

import time

import torch
from torch import nn

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 operations per second by the vendor's datasheet, by a word of the device's name."""


class ThroughputMeter:
    """Tokens per second and mfu between two readings.

    mfu = 6 x matmul parameters x tokens / (seconds x processes x peak), where matmul parameters are those of every linear layer,
    the head included; attention is not counted. Padding is not counted either.
    """

    def __init__(self, model: nn.Module, num_processes: int):
        self.matmul_parameters = count_matmul_parameters(model)
        self.num_processes = num_processes
        self.peak = peak_flops()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval now."""
        self.tokens, self.start = 0, time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Do not count time that went into something else."""
        self.start += seconds

    def read(self) -> dict[str, float]:
        """Return the figures since the last reading, for all processes, and begin a new interval."""
        seconds = time.perf_counter() - self.start
        tokens_per_second = self.tokens * self.num_processes / seconds
        figures = {"tokens_per_second": round(tokens_per_second, 1)}
        if self.peak is not None:
            figures["mfu"] = round(6 * self.matmul_parameters * tokens_per_second / (self.peak * self.num_processes), 4)
        self.restart()
        return figures


def count_matmul_parameters(model: nn.Module) -> int:
    """Count the weights of every linear layer, the head included; not those of an encoder of images, through which no text goes."""
    layers = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "vision_tower" not in name]
    return sum(layer.weight.numel() for layer in layers)


def peak_flops() -> float | None:
    """Return the peak of the GPU in use, None without one or where its name is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for word, peak in PEAK_FLOPS.items() if word in name), None)
