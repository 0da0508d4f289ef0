"""A model, the slots it generates in, and the step that moves them: plain transformers anywhere, captured kernels on CUDA."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from chatsft.generation.kernel_step import KernelStep, has_bounded_scores, has_kernels
from chatsft.generation.prefill import KernelPrefill, ModelPrefill, has_flash_attention
from chatsft.generation.sampling import Sampling
from chatsft.generation.slots import LENGTH, TOKEN, SlotCache, Slots
from chatsft.model.attention import VARLEN
from chatsft.model.head import GPTHead
from chatsft.model.modeling_gpt import GPTForCausalLM

CAPACITY_UNIT = 256
PREFILL_TOKENS = 32_768
"""Padded tokens of the prompts that one forward pass caches."""
MAX_SLOTS = 128
SHARE_TO_KEEP = 1 / 16
"""Largest share of the device's memory that is kept between calls."""
CAPTURING = "transformers.utils.output_capturing"
"""Where the hooks come from that stay in a model once asked for its hidden states, and do nothing unless asked again."""
ATTENTIONS = (*VARLEN, "sdpa", "eager")
"""Attention implementations that add a mask of numbers to their scores."""


class Step(Protocol):
    """One new token for every slot that runs, `num_steps` times."""

    def __call__(self, sampling: Sampling, num_steps: int) -> None: ...


class ModelStep:
    """A step by the model's own forward pass, which every other kind of step is tested against."""

    def __init__(self, model: GPTForCausalLM, cache: SlotCache):
        self.model, self.cache = model, cache

    def __call__(self, sampling: Sampling, num_steps: int) -> None:
        slots, config = self.cache.slots, self.model.config
        for _ in range(num_steps):
            self.cache.bound = int(slots.fields[LENGTH].max()) + 1
            logits = self.model(
                input_ids=slots.fields[TOKEN].long()[:, None],
                position_ids=slots.fields[LENGTH].long()[:, None],
                attention_mask=self.cache.masks(set(config.layer_windows or [None]), compute_dtype(self.model)),
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]
            slots.advance(sampling.choose(logits))


class Workspace:
    """What outlives a call: slots, their cache and the captured graphs. It does not hold the model, which may be freed meanwhile."""

    def __init__(self, model: GPTForCausalLM, num_rows: int, capacity: int):
        self.num_rows, self.dtype, self.weights = num_rows, compute_dtype(model), _addresses(model)
        num_slots = _affordable_slots(model, 1 << (num_rows - 1).bit_length(), capacity)
        self.slots = Slots(num_slots, capacity, model.config.vocab_size, model.device)
        self.cache = SlotCache(model.config, self.slots, self.dtype)
        self.kernels = KernelStep(model, self.cache, self.dtype) if has_kernels(model.device) else None

    def serves(self, model: GPTForCausalLM, num_rows: int, capacity: int) -> bool:
        """Say whether it is made for so many rows and the model's weights are still where captured graphs read them."""
        is_current = self.dtype == compute_dtype(model) and self.weights == _addresses(model)
        has_slots = self.slots.num_slots // 2 < num_rows <= self.slots.num_slots or num_rows == self.num_rows
        return is_current and has_slots and self.slots.capacity >= capacity

    @property
    def num_bytes(self) -> int:
        return sum(states.nbytes for states in (*self.cache.keys, *self.cache.values))


class Decoder:
    """A model and the slots it generates in, and what may be done to them."""

    def __init__(self, model: GPTForCausalLM, workspace: Workspace):
        self.model, self.slots, self.cache = model, workspace.slots, workspace.cache
        self.step: Step = workspace.kernels or ModelStep(model, workspace.cache)
        has_kernel = workspace.kernels is not None and has_flash_attention(model.config, workspace.dtype)
        self.fill = (KernelPrefill if has_kernel else ModelPrefill)(model, workspace.cache)

    def start(self, slots: list[int], prompts: list[list[int]], ends: list[int]) -> None:
        """Cache the prompts but for their last tokens, which the next step feeds, and let the rows run."""
        for part in _parts_to_fill([len(prompt) - 1 for prompt in prompts]):
            self.fill([slots[index] for index in part], [prompts[index][:-1] for index in part])
        self.slots.start(slots, prompts, ends)


def can_decode(model: PreTrainedModel) -> bool:
    """Say whether the decode loop serves this model: a nanochat GPT whole on one device, on CUDA with plain weights and Triton."""
    if not isinstance(model, GPTForCausalLM) or model.config._attn_implementation not in ATTENTIONS:
        return False
    device = model.device  # which transformers looks for anew each time
    is_whole = all(type(parameter) is nn.Parameter and parameter.device == device for parameter in model.parameters())
    if not is_whole or device.type == "meta" or any("forward" in vars(module) for module in model.modules()):
        return False  # accelerate puts autocast and moves between devices into a forward of its own
    return device.type != "cuda" or (has_kernels(device) and has_bounded_scores(model.config) and has_plain_weights(model))


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return what the residual stream of a forward pass is held in."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


_workspaces: "weakref.WeakKeyDictionary[PreTrainedModel, Workspace]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def borrow_decoder(model: GPTForCausalLM, num_rows: int, capacity: int) -> Iterator[Decoder]:
    """Lend the model's decoder, with a new workspace where the last one does not fit; a small one stays for the next call.

    Slots come in powers of two and capacities in steps of 256, so that calls of similar size share buffers and captured graphs.
    """
    num_rows, capacity = min(num_rows, MAX_SLOTS), -(-capacity // CAPACITY_UNIT) * CAPACITY_UNIT
    with _lock:
        workspace = _workspaces.pop(model, None)  # another thread that comes meanwhile makes its own
    with torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext():
        if workspace is None or not workspace.serves(model, num_rows, capacity):
            workspace = None  # its memory first
            with torch.inference_mode(False):  # a later call may be outside of it
                workspace = Workspace(model, num_rows, capacity)
        yield Decoder(model, workspace)
    if workspace.num_bytes <= SHARE_TO_KEEP * _device_memory(model.device):
        with _lock:
            _workspaces[model] = workspace


def release_workspaces() -> None:
    """Free what generation keeps between calls: caches and captured graphs."""
    with _lock:
        _workspaces.clear()


def _affordable_slots(model: GPTForCausalLM, num_slots: int, capacity: int) -> int:
    """Halve the slots until their cache takes at most half of what is free on the device."""
    if model.device.type == "cuda":
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        free = torch.cuda.mem_get_info(model.device)[0] + held
        while num_slots > 1 and _bytes_per_token(model) * num_slots * capacity > free / 2:
            num_slots //= 2
    return num_slots


def _bytes_per_token(model: GPTForCausalLM) -> int:
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * compute_dtype(model).itemsize


def _device_memory(device: torch.device) -> float:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**34


def _parts_to_fill(lengths: list[int]) -> list[list[int]]:
    """Divide prompts, as indices, into parts that one pass caches; a prompt of one token needs none.

    >>> _parts_to_fill([20_000, 0, 15_000, 9])
    [[0], [2, 3]]
    """
    parts, width = [[]], 0
    for index, length in enumerate(lengths):
        width = max(width, length)
        if parts[-1] and width * (len(parts[-1]) + 1) > PREFILL_TOKENS:
            parts.append([])
            width = length
        if length:
            parts[-1].append(index)
    return [part for part in parts if part]


def has_plain_weights(model: GPTForCausalLM) -> bool:
    """Say whether every matrix is a plain one, without adapters or quantization, and nobody hooked into the forward pass."""
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
    if any(hook.__module__ != CAPTURING for hook in hooks):
        return False
    trunk = model.model
    matrices = [matrix for layer in trunk.layers for matrix in (*layer.self_attn.children(), *layer.mlp.children())]
    matrices += [trunk.smear_gate] if model.config.smear else []
    tables = [trunk.embed_tokens, *trunk.value_embeddings.values()]
    kinds = {type(matrix) for matrix in matrices}, {type(table) for table in tables}, type(model.lm_head)
    return kinds == ({nn.Linear}, {nn.Embedding}, GPTHead)


def _addresses(model: nn.Module) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in model.parameters())
