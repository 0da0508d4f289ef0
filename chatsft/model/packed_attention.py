"""How any causal language model keeps packed conversations apart: which attention it runs, and the proof that it works."""

import torch
from transformers import PreTrainedModel

from .flash_attention import has_flash_4
from .modeling_gpt import GPTForCausalLM

LENGTHS = (7, 9)
"""Tokens of the two segments that the proof packs."""


class IsolationError(ValueError):
    """A model under which packed conversations see each other, or that does not take packed batches, with what to do."""


def prepare_attention(model: PreTrainedModel, implementation: str | None, packing: bool) -> None:
    """Set the attention that training takes.

    Without a wish, a model of chatsft gets "varlen" when packing ("varlen_fa4" where FlashAttention 4 is installed) and "sdpa"
    otherwise; another model keeps the one transformers chose,
    or gets "varlen" when packing if it passes the proof (see `keeps_packed_apart`). Padded rows need nothing special.

    Args:
        implementation: the wish, already set on the model.

    Raises:
        IsolationError: where packed conversations would see each other under the wish, or under every attention tried.
    """
    if isinstance(model, GPTForCausalLM):
        if implementation is None:
            packed = "varlen_fa4" if has_flash_4() else "varlen"
            model.set_attn_implementation(packed if packing else "sdpa")
        return
    if not packing or is_flash_attention(model.config._attn_implementation):
        return
    chosen = model.config._attn_implementation
    # What a flash kernel can do, varlen can: windows come as an argument. Other models put more into a mask, which varlen does not read.
    candidates = [*(["varlen"] if model._supports_flash_attn else []), chosen, "eager"]
    for candidate in candidates if implementation is None else [chosen]:
        if keeps_packed_apart(model, candidate):
            return
    raise IsolationError(
        f"{type(model).__name__} with attention {chosen!r} does not keep packed conversations apart. "
        "Set packing: false, which pads one conversation a row."
    )


def is_flash_attention(implementation: str) -> bool:
    """Tell whether it is one of transformers' flash kernels, which take cu_seq_lens and run on a GPU alone."""
    return "flash" in implementation


@torch.no_grad()
def keeps_packed_apart(model: PreTrainedModel, implementation: str) -> bool:
    """Set an attention and try whether a conversation gives the same logits packed behind another one as alone under "eager".

    What is tried is the kernel of the device that the model is on, in the precision of the autocast that is on.
    The model is run in training mode too, where an attention that cannot drop out says so.
    """
    ids = (torch.arange(sum(LENGTHS), device=model.device) * 7919 + 13) % model.get_input_embeddings().num_embeddings
    own, was_training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    alone = model.eval()(input_ids=ids[None, LENGTHS[0] :], use_cache=False).logits[0]
    try:
        model.set_attn_implementation(implementation)
        with torch.random.fork_rng():
            model.train()(**_packed_batch(ids), use_cache=False)
        packed = model.eval()(**_packed_batch(ids), use_cache=False).logits[0, LENGTHS[0] :]
    except (TypeError, ValueError, RuntimeError):  # it does not do what this model asks for
        packed = alone * torch.nan
    model.train(was_training)
    is_exact = packed.dtype == torch.float32 and not model_is_quantized(model) and not torch.is_autocast_enabled(model.device.type)
    tolerance = 1e-3 if is_exact else 3e-2
    is_apart = bool((packed - alone).abs().max() <= tolerance * alone.abs().max())
    if not is_apart:
        model.set_attn_implementation(own)
    return is_apart


def model_is_quantized(model: PreTrainedModel) -> bool:
    """Tell whether its products round more than float32 does, whatever the dtype of its logits."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def _packed_batch(ids: torch.Tensor) -> dict:
    bounds = torch.tensor([0, LENGTHS[0], len(ids), len(ids)], dtype=torch.int32, device=ids.device)
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(length, device=ids.device) for length in LENGTHS])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": len(ids),
        "max_length_k": len(ids),
    }


__all__ = ["IsolationError", "is_flash_attention", "keeps_packed_apart", "prepare_attention"]
