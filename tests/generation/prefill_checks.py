"""Checks of the prefill kernel for a process of their own: Triton decides when it is imported whether it interprets or compiles.

TRITON_INTERPRET=1 python -m tests.generation.prefill_checks agree '{"year": "2026", "dtype": "float32"}'
    the kernel, interpreted on the CPU, against the model's own forward pass
python -m tests.generation.prefill_checks compile '{"year": "2026"}'
    the kernel to machine code for an H100, through all of Triton but the launch, which needs no GPU
"""

import json
import sys

import torch
from triton.runtime import driver

from chatsft.generation.prefill import KernelPrefill, ModelPrefill
from chatsft.generation.prefill_kernel import turn_and_cache
from chatsft.generation.slots import SlotCache, Slots
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from tests.generation.kernel_checks import D20, D20_2026, H100WithoutItself, index_by_arrays_of_one
from tests.generation.models import build_model, random_prompts

NUM_SLOTS, CAPACITY = 6, 64


@torch.no_grad()
def agree(year: str, dtype: str, device: str = "cpu", **fields) -> dict:
    """Return the largest difference of cached keys and values over the largest of them, and whether nothing else was written."""
    model = build_model(year, getattr(torch, dtype), **fields).to(device)
    prompts, slots = random_prompts([33, 1, 17]), [4, 0, 3]
    caches = []
    for kind in (ModelPrefill, KernelPrefill):
        cache = SlotCache(model.config, Slots(NUM_SLOTS, CAPACITY, 300, model.device), model.dtype)
        kind(model, cache)(slots, prompts)
        caches.append(torch.stack([torch.stack(cache.keys), torch.stack(cache.values)]))
    written = torch.zeros(NUM_SLOTS, CAPACITY, dtype=torch.bool)
    for slot, prompt in zip(slots, prompts, strict=True):
        written[slot, : len(prompt)] = True
    expected, found = (cache.permute(2, 4, 0, 1, 3, 5) for cache in caches)
    difference = (expected[written] - found[written]).abs().max() / expected[written].abs().max()
    return {"difference": difference.item(), "touched_others": bool(found[~written].any())}


@torch.no_grad()
def compile_kernel(year: str, weights: str = "bfloat16") -> list[dict]:
    """Compile the kernel as an H100 would for its first launches, which take shapes and dtypes alone."""
    driver.set_active(H100WithoutItself())
    with torch.device("meta"):
        model = GPTForCausalLM(GPTConfig(**D20 | (D20_2026 if year == "2026" else {}))).to(getattr(torch, weights))
        prefill = KernelPrefill(model, SlotCache(model.config, Slots(32, 1024, 16, model.device), model.dtype))
        table = torch.empty(7, 64, dtype=torch.float32)
        tokens = (table, table, *(torch.empty(7, dtype=torch.long) for _ in range(3)))
        hidden = torch.empty(1, 7, model.config.hidden_size, dtype=model.dtype)
        for layer in (0, 1):  # with and without value embeddings, where there are any
            prefill.project(layer, model.model.layers[layer].self_attn, hidden, tokens)
    compiled = turn_and_cache.device_caches[0][0].values()
    return [{"wide_loads": "ld.global.v4" in kernel.asm["ptx"], "wide_stores": "st.global.v4" in kernel.asm["ptx"]} for kernel in compiled]


if __name__ == "__main__":
    index_by_arrays_of_one()
    print(json.dumps({"agree": agree, "compile": compile_kernel}[sys.argv[1]](**json.loads(sys.argv[2]))))
