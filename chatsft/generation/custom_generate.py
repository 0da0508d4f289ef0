"""The decode loop as a generation mode of transformers: `model.generate(..., custom_generate=decode)`."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from chatsft.generation.decode_loop import decode_rows
from chatsft.generation.decoder import can_decode
from chatsft.generation.sampling import Sampling
from chatsft.generation.tool_state import ChatTokenizer
from chatsft.generation.tool_use import ToolUseProcessor

SERVED_CACHES = (None, "dynamic", "static")
"""Cache implementations that ask for nothing the loop's own cache lacks; the others save memory."""


@dataclass(frozen=True)
class Request:
    """What a call of generate() asks for, as far as the decode loop knows it."""

    prompts: list[list[int]]
    sampling: Sampling
    ending: set[int]
    tokenizer: ChatTokenizer | None


def decode(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None = None,
    **model_kwargs,
) -> torch.LongTensor:
    """Generate as `model.generate()` does without this function, faster.

        model.generate(input_ids, custom_generate=decode, logits_processor=[ToolUseProcessor(tokenizer)], max_new_tokens=256)

    Serves greedy decoding and sampling with temperature and top_k, tool use, end tokens and left padding. Where a call asks for more (other
    processors or criteria, scores, a cache of its own), or for a model that the loop cannot run, transformers' loop does it.

    Args:
        streamer: transformers hands none to a custom_generate function; bind it: `custom_generate=partial(decode, streamer=streamer)`.

    Returns:
        (rows, length) prompts and new tokens, padded on the right.
    """
    if generation_config.num_beams != 1:
        raise ValueError(f"num_beams is {generation_config.num_beams}; decode searches no beams. Leave custom_generate out.")
    if streamer is not None:
        streamer.put(input_ids.cpu())
    request = _read_request(model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
    if request is None:
        options = {"stopping_criteria": stopping_criteria, "generation_config": generation_config, "streamer": streamer}
        return model._sample(input_ids, logits_processor=logits_processor, synced_gpus=_is_shared(model), **options, **model_kwargs)
    pad = 0 if generation_config._pad_token_tensor is None else int(generation_config._pad_token_tensor)
    rows = decode_rows(
        model,
        request.prompts,
        max_new_tokens=generation_config.max_length - input_ids.shape[1],
        ending=request.ending,
        sampling=request.sampling,
        tokenizer=request.tokenizer,
        streamer=streamer,
        pad=pad,
    )
    width = max(map(len, rows))
    generated = torch.from_numpy(np.array([row + [pad] * (width - len(row)) for row in rows]))
    return torch.cat([input_ids, generated.to(input_ids)], dim=1)


def _read_request(model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs) -> Request | None:
    """Read what a call asks for; None where it is more than the decode loop does."""
    if not can_decode(model) or not _is_plain_call(generation_config, model_kwargs):
        return None
    prompts = _unpad(input_ids, model_kwargs.get("attention_mask"))
    sampling = _read_sampling(logits_processor, generation_config.do_sample)
    ending = _read_ending(stopping_criteria)
    if prompts is None or sampling is None or ending is None:
        return None
    tools = [processor for processor in logits_processor if isinstance(processor, ToolUseProcessor)]
    return Request(prompts, sampling, ending, tools[0].tokenizer if tools else None)


def _is_shared(model: nn.Module) -> bool:
    """Say whether every step takes all processes, because each holds a part of the weights."""
    is_split = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return torch.distributed.is_initialized() and (is_split or is_fsdp_managed_module(model) or is_deepspeed_zero3_enabled())


def _is_plain_call(config: GenerationConfig, model_kwargs: dict) -> bool:
    cache = model_kwargs.get("past_key_values")
    is_started = cache is not None and int(cache.get_seq_length()) > 0
    return (
        not is_started
        and model_kwargs.get("inputs_embeds") is None
        and model_kwargs.get("pixel_values") is None
        and config.use_cache
        and config.cache_implementation in SERVED_CACHES
        and not config.return_dict_in_generate
        and config.prefill_chunk_size is None
    )


def _unpad(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> list[list[int]] | None:
    """Return the rows without their padding; None where it is not all on the left.

    >>> _unpad(torch.tensor([[0, 5], [6, 7]]), torch.tensor([[0, 1], [1, 1]]))
    [[5], [6, 7]]
    """
    rows = input_ids.tolist()
    if attention_mask is None:
        return rows
    is_real = attention_mask.cpu().bool()
    lengths = is_real.sum(1)
    if not torch.equal(is_real, torch.arange(-input_ids.shape[1], 0, device="cpu") >= -lengths[:, None]) or not lengths.all():
        return None
    return [row[-length:] for row, length in zip(rows, lengths.tolist(), strict=True)]


def _read_sampling(processors: LogitsProcessorList, do_sample: bool) -> Sampling | None:
    """Return temperature and top_k; None where something else changes the scores."""
    temperature, top_k = 1.0, 0
    for processor in processors:
        if type(processor) is TemperatureLogitsWarper:
            temperature = processor.temperature
        elif type(processor) is TopKLogitsWarper:
            top_k = processor.top_k
        elif type(processor) is not ToolUseProcessor:
            return None
    return Sampling(temperature, top_k) if do_sample else Sampling()


def _read_ending(criteria: StoppingCriteriaList) -> set[int] | None:
    """Return the end tokens; None where something else may stop a row."""
    if any(type(criterion) not in (MaxLengthCriteria, EosTokenCriteria) for criterion in criteria):
        return None
    return {token for criterion in criteria if type(criterion) is EosTokenCriteria for token in criterion.eos_token_id.tolist()}
