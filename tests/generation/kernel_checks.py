"""Checks of the kernels for a process of their own: Triton decides when it is imported whether it interprets or compiles.

TRITON_INTERPRET=1 python -m tests.generation.kernel_checks agree '{"year": "2026", "dtype": "float32", "splits": 4}'
    the kernels, interpreted on the CPU, against the model's own forward pass
python -m tests.generation.kernel_checks compile '{"year": "2026", "num_rows": 32}'
    every kernel to machine code for an H100, through all of Triton but the launch, which needs no GPU
"""

import json
import sys
from typing import Self

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, interpreter

from chatsft.generation import kernel_step
from chatsft.generation.decoder import Decoder, ModelStep, Workspace
from chatsft.generation.kernel_step import KernelChain, Tile
from chatsft.generation.sampling import Sampling
from chatsft.generation.slots import LENGTH, SlotCache, Slots
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from tests.generation.models import build_model, random_prompts

D20 = {"vocab_size": 65536, "hidden_size": 1280, "num_hidden_layers": 3, "num_attention_heads": 10}
D20_2026 = {
    "query_key_scale": 1.2,
    "layer_windows": [513, 513, 2049],
    "value_embedding_layers": [0, 2],
    "residual_scaling": True,
    "smear": True,
    "backout": True,
}


class Recorded(Sampling):
    """Greedy, keeping the logits."""

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        self.seen.append(logits.clone())
        return super().choose(logits)


def run(model, by_kernels: bool, lengths: list[int], num_steps: int, chosen: bool) -> tuple[torch.Tensor, Slots]:
    """Run one row, or several beside a slot that is never used, the second of which halts early; the first follows a plan.

    The kernels are told what was `chosen`, or take the likeliest token themselves. Return logits and slots.
    """
    prompts = random_prompts(lengths)
    workspace = Workspace(model, len(prompts) + (len(prompts) > 1), 64)
    decoder, sampling = Decoder(model, workspace), Recorded()
    object.__setattr__(sampling, "seen", [])
    workspace.slots.clear(set())
    ends = [len(prompt) + (1 if index == 1 else 60) for index, prompt in enumerate(prompts)]
    decoder.start(list(range(len(prompts))), prompts, ends)
    workspace.slots.resume({0: (len(prompts[0]) + 1, [7])})
    if by_kernels:
        chain = KernelChain(model, workspace.cache, model.dtype)
        for _ in range(num_steps):
            token = sampling.choose(chain.logits())
            chain.advance(token if chosen else None)()
        assert not any(arrived.any() for _, arrived in chain.shared.values())
    else:
        ModelStep(model, workspace.cache)(sampling, num_steps)
    logits = torch.stack(sampling.seen)[:, : len(prompts)]
    logits[1:, 1:2] = 0  # that row has halted
    return logits, workspace.slots


@torch.no_grad()
def agree(
    year: str, dtype: str, splits: int, lengths: tuple[int, ...] = (33, 1, 3), chosen: bool = False, few: list[int] | None = None, **fields
) -> dict:
    """Return the largest difference over the largest logit, and whether all rows moved alike.

    `few` are outputs and programs of a tile, with which rows are multiplied as few rows are whatever their dtype.
    """
    if few:
        num_outputs, num_splits = few
        tile = Tile(num_outputs, 128, num_stages=1, preload=1, ahead=1, splits=num_splits)
        kernel_step.choose_tile = lambda *shape: tile
    kernel_step.choose_splits = lambda num_pairs: splits
    kernel_step.choose_keys = lambda head_dim, itemsize: 16
    model = build_model(year, getattr(torch, dtype), **fields)
    (a, rows), (b, others) = (run(model, by_kernels, list(lengths), 2, chosen) for by_kernels in (False, True))
    moved_alike = torch.equal(rows.fields, others.fields) and torch.equal(rows.trace, others.trace)
    return {"difference": ((a - b).abs().max() / a.abs().max()).item(), "moved_alike": moved_alike, "lengths": rows.fields[LENGTH].tolist()}


class NoLauncher:
    """Stands for the code that starts a kernel."""

    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments) -> None:
        pass


class H100WithoutItself:
    """What Triton asks of an H100's driver before a launch: it compiles, and refuses what does not fit, as there."""

    launcher_cls = NoLauncher

    @property
    def utils(self) -> Self:
        return self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device: int) -> dict:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, *binary) -> tuple:
        most_threads = 1024
        return None, None, 0, 0, most_threads


def compile_step(year: str, num_rows: int, weights: str = "bfloat16", dtype: str = "bfloat16", early: bool = False) -> list[dict]:
    """Compile every kernel of a d20 model's step as an H100 would for its first launch, which takes shapes and dtypes alone."""
    driver.set_active(H100WithoutItself())
    with torch.device("meta"):
        model = GPTForCausalLM(GPTConfig(**D20 | (D20_2026 if year == "2026" else {}))).to(getattr(torch, weights))
    slots = Slots(num_rows, 1024, 16, torch.device("meta"))
    chain = KernelChain(model, SlotCache(model.config, slots, getattr(torch, dtype)), getattr(torch, dtype))
    launches = [*chain.launches, chain.advance(torch.empty(num_rows, dtype=torch.int64, device="meta")), chain.advance(None)]
    for launch in launches:
        launch.constants["EARLY"] = early
    return [describe(launch()) for launch in {str((launch.kernel, launch.constants)): launch for launch in launches}.values()]


def describe(compiled) -> dict:
    return {
        "kernel": compiled.metadata.name,
        "early": compiled.metadata.launch_pdl,
        "tensor_cores": "mma" in compiled.asm["ptx"],
        "async_loads": compiled.asm["ptx"].count("cp.async"),
    }


def index_by_arrays_of_one() -> None:
    """Let Triton before 3.9 interpret loops with NumPy from 2.4 on, which no longer takes an array of one number for a number."""
    patch = interpreter._patch_lang_tensor

    def patch_more(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_more


if __name__ == "__main__":
    index_by_arrays_of_one()
    print(json.dumps({"agree": agree, "compile": compile_step}[sys.argv[1]](**json.loads(sys.argv[2]))))
