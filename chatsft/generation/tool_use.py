"""Call the calculator while rows are generated: a logits processor for `model.generate()`, and completions of many prompts at once."""

import logging
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Self

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from chatsft.generation.decode_loop import decode_rows
from chatsft.generation.decoder import can_decode
from chatsft.generation.penalties import penalty_options
from chatsft.generation.sampling import Sampling
from chatsft.generation.tool_state import ChatTokenizer, ControlTokens, ToolCallState

logger = logging.getLogger(__name__)

UNLIMITED = 2**31


class Ending(NamedTuple):
    """What ends a row and fills it up, and whether the tool is called in it."""

    terminal: tuple[int, ...]
    pad: int
    has_tool: bool

    @classmethod
    def of(cls, tokenizer: ChatTokenizer, ends: Sequence[int] | None) -> Self:
        """Take nanochat's tokens and its tool, or the ends that are given and no tool."""
        terminal = ControlTokens.of(tokenizer).terminal if ends is None else tuple(ends)
        pad = next(iter(terminal), 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # nothing sees it
        return cls(terminal, pad, has_tool=ends is None)


class ToolUseProcessor(LogitsProcessor):
    """Force the calculator's answer after every python block that has one.

    Make a new one for every call of generate(): it remembers the rows. Serves greedy decoding and sampling; the token that the
    model would have chosen in a forced place is discarded, as nanochat's engine does.
    """

    def __init__(self, tokenizer: ChatTokenizer):
        self.tokenizer = tokenizer
        self.states: list[ToolCallState] = []
        self.length = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.states:
            self._observe_last_column(input_ids)
        else:
            self.states = [ToolCallState(self.tokenizer) for _ in input_ids]
        self.length = input_ids.shape[1]
        return _force_tokens(scores, {row: state.forced[0] for row, state in enumerate(self.states) if state.forced})

    def _observe_last_column(self, input_ids: torch.LongTensor) -> None:
        """Feed each row's new token to its state, in one read from the device; the column before shows that rows kept their places."""
        rows = input_ids[:, -2:].tolist()
        if len(rows) != len(self.states) or input_ids.shape[1] != self.length + 1:
            raise ValueError(
                f"This ToolUseProcessor followed {len(self.states)} rows up to token {self.length} and now sees {len(rows)} rows of "
                f"{input_ids.shape[1]} tokens. Make a new ToolUseProcessor for every call of generate()."
            )
        for state, (*before, token) in zip(self.states, rows, strict=True):
            if before and state.last_token is not None and before != [state.last_token]:
                raise ValueError("The rows changed places between two tokens. Tool use needs num_beams=1 (greedy decoding or sampling).")
            state.observe(token)


def _force_tokens(scores: torch.Tensor, forced: dict[int, int]) -> torch.Tensor:
    """Leave one token possible in each row of `forced`.

    >>> _force_tokens(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), {1: 0})
    tensor([[1., 2.],
            [0., -inf]])
    """
    if not forced:
        return scores
    rows = torch.tensor(list(forced), device=scores.device)
    tokens = torch.tensor(list(forced.values()), device=scores.device)
    scores = scores.index_fill(0, rows, -torch.inf)
    scores[rows, tokens] = 0.0
    return scores


def generate_completions(
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = 50,
    num_samples: int = 1,
    seed: int | None = None,
    batch_size: int | None = None,
    streamer: BaseStreamer | None = None,
    repetition_penalty: float = 1.0,
    exponential_decay_length_penalty: tuple[int, float] | None = None,
    keep_end: bool = False,
    pixel_values: torch.Tensor | None = None,
    ends: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """Complete every prompt with tool use, in batches of similar length.

    Args:
        prompts: token ids, each as `tokenizer.render_for_completion` gives them. One that leaves no room in the context loses its
            beginning, which is counted in the log.
        max_new_tokens: most tokens of a completion, forced ones included; 0 gives empty ones.
        temperature: 0 is greedy.
        top_k: sample among the most likely tokens; 0 or None is all of them.
        num_samples: completions per prompt.
        seed: makes samples repeatable and leaves the caller's random state as it was; None draws from the caller's.
        batch_size: most rows generated together; None is as many as are worth it.
        streamer: shown the tokens of a single prompt as they come, e.g. `transformers.TextStreamer`.
        repetition_penalty: above 1, makes tokens of the prompt and the completion less likely to come again (transformers' measure).
        exponential_decay_length_penalty: (start, factor): after `start` new tokens the end of the answer grows likelier by `factor` with
            each token (transformers' measure). transformers' `length_penalty` ranks beams, which tool use cannot have.
        keep_end: leave the token that ended a row in the completion; one that was cut at max_new_tokens has none.
        pixel_values: the images of a single prompt, as GPTProcessor gives them; it has to fit the context.
        ends: the tokens that end a completion of a model in another chat format, which has no tool; None is nanochat's, with its tool.

    Returns:
        For each prompt its completions: generated ids without the prompt and, unless `keep_end`, without the token that ended the row.

    Raises:
        ValueError: on a number that is too small, and on a prompt that is not a list of ids that the model knows.
    """
    _check_at_least(0, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k or 0)
    _check_at_least(1, num_samples=num_samples, batch_size=1 if batch_size is None else batch_size)
    sampling = Sampling(temperature, top_k or 0)
    penalties = penalty_options(repetition_penalty, exponential_decay_length_penalty)
    prompts = _fit_prompts(prompts, model.config, max_new_tokens, has_images=pixel_values is not None)
    num_draws = num_samples if temperature else 1
    rows = sorted((index for index in range(len(prompts)) for _ in range(num_draws)), key=lambda index: -len(prompts[index]))
    ordered = [prompts[index] for index in rows]
    ending = Ending.of(tokenizer, ends)
    options = penalties | ({} if pixel_values is None else {"pixel_values": pixel_values.to(model.device)})
    complete = _decode if can_decode(model) and not options else partial(_generate, options=options)
    with _random_state(seed, model.device):
        generated = complete(model, tokenizer, ordered, ending, max_new_tokens, sampling, batch_size or len(rows), streamer)
    completions = [[] for _ in prompts]
    for index, row in zip(rows, generated, strict=True):
        completions[index].append(_cut_at(row, ending.terminal, keep_end))
    return [drawn * (num_samples // num_draws) for drawn in completions]


def max_prompt_tokens(config: PreTrainedConfig, max_new_tokens: int) -> int:
    """Return how long a prompt may be: what the new tokens leave of the context, at least half of it."""
    context = context_length(config)
    return context - min(max_new_tokens, context // 2)


def context_length(config: PreTrainedConfig) -> int:
    """Return the tokens that a model was made for; a recurrent one knows no such number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED


def _fit_prompts(prompts: Sequence[list[int]], config: PreTrainedConfig, max_new_tokens: int, has_images: bool) -> list[list[int]]:
    """Check the prompts and return what of them fits the context; one with images has to fit as it is."""
    _check_prompts(prompts, config.get_text_config().vocab_size)
    if has_images:
        _check_images(prompts, max_prompt_tokens(config, max_new_tokens))
    return _truncate_prompts(prompts, max_prompt_tokens(config, max_new_tokens))


def _check_at_least(lowest: int, **numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= lowest:  # NaN neither
            raise ValueError(f"{name} is {number}; it may be {lowest} or more.")


def _check_prompts(prompts: Sequence[list[int]], vocab_size: int) -> None:
    """Refuse what the model cannot look up; on a GPU it would end the process, or be read from elsewhere in memory."""
    for index, prompt in enumerate(prompts):
        if not (isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt)):
            raise ValueError(f"Prompt {index} is {reprlib.repr(prompt)}; a prompt is a list of at least one token id.")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            unknown = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ValueError(
                f"Prompt {index} has the id {unknown}, and the model knows 0 to {vocab_size - 1}. Use the model's own tokenizer."
            )


def _check_images(prompts: Sequence[list[int]], max_tokens: int) -> None:
    if len(prompts) != 1 or len(prompts[0]) > max_tokens:
        sizes = ", ".join(str(len(prompt)) for prompt in prompts)
        raise ValueError(f"pixel_values belong to one prompt of at most {max_tokens} tokens, not to {len(prompts)} of {sizes}.")


def _truncate_prompts(prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    """Keep the last `max_tokens` ids of each prompt.

    >>> _truncate_prompts([[1, 2, 3], [4]], 3)
    [[1, 2, 3], [4]]
    """
    num_long = sum(len(prompt) > max_tokens for prompt in prompts)
    if num_long:
        logger.warning("%d of %d prompts lost their beginning: only the last %d tokens fit.", num_long, len(prompts), max_tokens)
    return [prompt[-max_tokens:] for prompt in prompts]


def _decode(
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    prompts: list[list[int]],
    ending: Ending,
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    """Complete prompts in the decode loop."""
    if streamer is not None:
        streamer.put(torch.tensor(_pad_left(prompts, ending.pad)[0]))
    return decode_rows(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        ending=set(ending.terminal),
        sampling=sampling,
        tokenizer=tokenizer,
        max_rows=batch_size,
        streamer=streamer,
        pad=ending.pad,
    )


def _generate(
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    prompts: list[list[int]],
    ending: Ending,
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
    streamer: BaseStreamer | None,
    options: dict,
) -> list[list[int]]:
    """Complete prompts by transformers' loop, which serves every model and knows penalties and images, batch by batch."""
    options = {"max_new_tokens": max_new_tokens, "do_sample": sampling.temperature > 0, "num_beams": 1, "use_cache": True} | options
    if options["do_sample"]:
        options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": 1.0}
    if not max_new_tokens:  # which generate() refuses
        return [[] for _ in prompts]
    generated = []
    for start in range(0, len(prompts), batch_size or 1):
        input_ids, attention_mask = _pad_left(prompts[start : start + batch_size], ending.pad)
        rows = model.generate(
            input_ids=torch.tensor(input_ids, device=model.device),
            attention_mask=torch.tensor(attention_mask, device=model.device),
            logits_processor=LogitsProcessorList([ToolUseProcessor(tokenizer)] if ending.has_tool else []),
            eos_token_id=list(ending.terminal) or None,
            pad_token_id=ending.pad,
            streamer=streamer,
            **options,
        )
        generated += rows[:, len(input_ids[0]) :].tolist()
    return generated


def _pad_left(prompts: list[list[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return ids of equal length and their attention mask.

    >>> _pad_left([[5], [6, 7]], pad=0)
    ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    width = max(map(len, prompts))
    missing = [width - len(prompt) for prompt in prompts]
    input_ids = [[pad] * num + prompt for num, prompt in zip(missing, prompts, strict=True)]
    return input_ids, [[0] * num + [1] * (width - num) for num in missing]


def _cut_at(ids: list[int], terminal: Sequence[int], keep_end: bool = False) -> list[int]:
    """Return the ids before the first terminal one, or up to it.

    >>> _cut_at([7, 8, 1, 0, 0], terminal=(1, 2)), _cut_at([7, 8, 1, 0, 0], terminal=(1, 2), keep_end=True)
    ([7, 8], [7, 8, 1])
    """
    end = next((position for position, token in enumerate(ids) if token in terminal), len(ids))
    return ids[: end + keep_end]


@contextmanager
def _random_state(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed the generator that sampling on `device` draws from, and put its state back afterwards.

    Only that one: `torch.manual_seed` would reseed every other device too, which nothing puts back.
    """
    if seed is None:
        yield
        return
    generator = _default_generator(device)
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.get_device_module(device).default_generators[device.index]
