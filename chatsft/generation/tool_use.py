"""Let stock `model.generate()` call the calculator, row by row, in any batch."""

import logging
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from chatsft.generation.tool_state import ChatTokenizer, ControlTokens, ToolCallState

logger = logging.getLogger(__name__)


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
) -> list[list[list[int]]]:
    """Complete every prompt with tool use, in batches of similar length.

    Args:
        prompts: token ids, each as `tokenizer.render_for_completion` gives them. One that leaves no room in the context loses its
            beginning, which is counted in the log.
        max_new_tokens: most tokens of a completion, forced ones included.
        temperature: 0 is greedy.
        top_k: sample among the most likely tokens; 0 or None is all of them.
        num_samples: completions per prompt.
        seed: makes samples repeatable and leaves the caller's random state as it was; None draws from the caller's.
        batch_size: rows generated together; None is all of them.
        streamer: shown the tokens of a single prompt as they come, e.g. `transformers.TextStreamer`.

    Returns:
        For each prompt its completions: generated ids without the prompt and without the token that ended the row.
    """
    options = _generation_options(max_new_tokens, temperature, top_k)
    prompts = _truncate_prompts(prompts, max_prompt_tokens(model.config, max_new_tokens))
    num_draws = num_samples if options["do_sample"] else 1
    rows = sorted((index for index in range(len(prompts)) for _ in range(num_draws)), key=lambda index: -len(prompts[index]))
    completions = [[] for _ in prompts]
    with _random_state(seed, model.device):
        for batch in _batches(rows, batch_size or len(rows)):
            generated = _generate_batch(model, tokenizer, [prompts[index] for index in batch], streamer, options)
            for index, completion in zip(batch, generated, strict=True):
                completions[index].append(completion)
    return [drawn * (num_samples // num_draws) for drawn in completions]


def max_prompt_tokens(config: PreTrainedConfig, max_new_tokens: int) -> int:
    """Return how long a prompt may be: what the new tokens leave of the context, at least half of it."""
    context = config.max_position_embeddings
    return context - min(max_new_tokens, context // 2)


def _generation_options(max_new_tokens: int, temperature: float, top_k: int | None) -> dict:
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it may be 0 (greedy) or more.")
    options = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0, "num_beams": 1, "use_cache": True}
    return options | ({"temperature": temperature, "top_k": top_k or 0, "top_p": 1.0} if temperature > 0 else {})


def _truncate_prompts(prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    """Keep the last `max_tokens` ids of each prompt.

    >>> _truncate_prompts([[1, 2, 3], [4]], 3)
    [[1, 2, 3], [4]]
    """
    for index, prompt in enumerate(prompts):
        if not (isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt)):
            raise ValueError(f"Prompt {index} is {reprlib.repr(prompt)}; a prompt is a list of at least one token id.")
    num_long = sum(len(prompt) > max_tokens for prompt in prompts)
    if num_long:
        logger.warning("%d of %d prompts lost their beginning: only the last %d tokens fit.", num_long, len(prompts), max_tokens)
    return [prompt[-max_tokens:] for prompt in prompts]


def _generate_batch(
    model: PreTrainedModel, tokenizer: ChatTokenizer, prompts: list[list[int]], streamer: BaseStreamer | None, options: dict
) -> list[list[int]]:
    terminal = ControlTokens.of(tokenizer).terminal
    pad = terminal[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    input_ids, attention_mask = _pad_left(prompts, pad)
    generated = model.generate(
        input_ids=torch.tensor(input_ids, device=model.device),
        attention_mask=torch.tensor(attention_mask, device=model.device),
        logits_processor=LogitsProcessorList([ToolUseProcessor(tokenizer)]),
        eos_token_id=list(terminal),
        pad_token_id=pad,
        streamer=streamer,
        **options,
    )
    return [_cut_at(row, terminal) for row in generated[:, len(input_ids[0]) :].tolist()]


def _pad_left(prompts: list[list[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return ids of equal length and their attention mask.

    >>> _pad_left([[5], [6, 7]], pad=0)
    ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    width = max(map(len, prompts))
    missing = [width - len(prompt) for prompt in prompts]
    input_ids = [[pad] * num + prompt for num, prompt in zip(missing, prompts, strict=True)]
    return input_ids, [[0] * num + [1] * (width - num) for num in missing]


def _cut_at(ids: list[int], terminal: Sequence[int]) -> list[int]:
    """Return the ids before the first terminal one.

    >>> _cut_at([7, 8, 1, 0, 0], terminal=(1, 2))
    [7, 8]
    """
    return ids[: next((position for position, token in enumerate(ids) if token in terminal), len(ids))]


def _batches(rows: list[int], batch_size: int) -> list[list[int]]:
    """Split rows into batches in their order.

    >>> _batches([4, 5, 6], 2)
    [[4, 5], [6]]
    """
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)] if rows else []


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
