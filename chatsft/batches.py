"""From the mixtures of a recipe to what each step holds: conversations, rendered, in rows, micro-batches and steps."""

import hashlib
import json
from typing import NamedTuple

import datasets
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from chatsft.arguments import ChatArguments, DataArguments, RecipeError
from chatsft.data.collator import EvaluationCollator, FlatteningCollator, ImageCollator, PaddingCollator
from chatsft.data.mixture import load_mixture
from chatsft.data.packing import ConversationRows, conversation_lengths, fill_up, pack_rows, pack_steps, shuffle_rows, single_rows
from chatsft.data.rendering import render_dataset, supervision_statistics
from chatsft.model.head_loss import chunk_size
from chatsft.model.processing_gpt import GPTProcessor
from chatsft.plan import Batching
from chatsft.recipe import Recipe

Collator = EvaluationCollator | FlatteningCollator | PaddingCollator

EVALUATED_TOGETHER = 16
"""Batches of the validation loss that go through the model at a time; which conversations make a batch is the recipe's."""


class Batches(NamedTuple):
    """A dataset of rows in training order, what collates them, and how many micro-batches make a step."""

    dataset: Dataset
    collator: Collator
    gradient_accumulation_steps: int


def load_conversations(key: str, entries: list, recipe: Recipe) -> datasets.Dataset:
    """Load a mixture of a recipe, train_mixture or eval_mixture, in training order."""
    data = recipe.data
    places = {"data_root": data.data_root, "folders": (recipe.folder, ".")}
    return load_mixture(entries, **places, order=data.mixture_order, on_bad_row=data.on_bad_row, name=key)


def load_rendered(key: str, entries: list, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Load a mixture and render it to input_ids and assistant_masks."""
    data = recipe.data
    conversations = load_conversations(key, entries, recipe)
    rendered = render_dataset(conversations, tokenizer, data.max_length, num_proc=data.dataset_num_proc, on_bad_row=data.on_bad_row)
    if not any(mask.any() for batch in rendered.with_format("numpy").iter(1000) for mask in batch["assistant_masks"]):
        raise RecipeError(f"{key} has no token to train on: in every conversation the assistant's part is missing or cut off.")
    return rendered


def plan_batches(
    rendered: datasets.Dataset, data: DataArguments, batch_size: int, world_size: int, pad_token_id: int, seed: int
) -> Batches:
    """Arrange rendered conversations into rows and micro-batches so that each optimizer step holds what the recipe says.

    Args:
        batch_size: rows (packed) or conversations (unpacked) of a micro-batch on each process.
        world_size: processes.
        seed: of the row order where packing runs across the mixture.
    """
    per_micro_batch = batch_size * world_size
    if not data.packing:
        accumulation = divide("target_examples_per_step", data.target_examples_per_step, batch_size, world_size)
        rows = fill_up(single_rows(len(rendered)), per_micro_batch)
        return Batches(ConversationRows(rendered, rows), PaddingCollator(pad_token_id), accumulation)
    lengths = conversation_lengths(rendered).tolist()
    if data.total_batch_size is not None:
        accumulation = divide("total_batch_size", data.total_batch_size, batch_size, world_size, data.max_length)
        rows = fill_up(shuffle_rows(pack_rows(lengths, data.max_length), seed), per_micro_batch)
    else:
        rows, rows_per_step = pack_steps(lengths, data.target_examples_per_step, data.max_length, per_micro_batch)
        accumulation = rows_per_step // per_micro_batch
    collator = FlatteningCollator(data.max_length, pad_token_id, max(map(len, rows)), chunk_size(batch_size * data.max_length))
    return Batches(ConversationRows(rendered, rows), collator, accumulation)


def describe_batches(rendered: datasets.Dataset, batches: Batches, args: ChatArguments, max_length: int) -> Batching:
    """Count what an epoch goes through, for the plan."""
    counts = supervision_statistics(mask for batch in rendered.with_format("numpy").iter(1000) for mask in batch["assistant_masks"])
    rows, size, longest = len(batches.dataset), args.per_device_train_batch_size, max_length
    padded_tokens = rows * max_length
    if isinstance(batches.collator, PaddingCollator):
        lengths = conversation_lengths(rendered)
        longest = int(lengths.max())
        padded_tokens = sum(size * int(lengths[first : first + size].max()) for first in range(0, rows, size))
    return Batching(
        conversations=counts["conversations"],
        tokens=counts["tokens"],
        supervised_tokens=counts["supervised_tokens"],
        padded_tokens=padded_tokens,
        rows=rows,
        row_length=longest,
        rows_per_micro_batch=size,
        micro_batches_per_update=batches.gradient_accumulation_steps,
    )


def plan_evaluation(rendered: datasets.Dataset, args: ChatArguments, pad_token_id: int, packing: bool) -> Batches:
    """Arrange conversations for the validation loss, with as many rows for every process, so that none is counted twice.

    Packed, a row is a batch of per_device_eval_batch_size conversations, and several rows go through the model at a time, which changes
    per_device_eval_batch_size; otherwise each conversation is padded to the longest of its batch.
    """
    rows, collator = single_rows(len(rendered)), PaddingCollator(pad_token_id)
    if packing:
        size, args.per_device_eval_batch_size = args.per_device_eval_batch_size, EVALUATED_TOGETHER
        rows = [list(range(first, min(first + size, len(rendered)))) for first in range(0, len(rendered), size)]
        collator = EvaluationCollator(pad_token_id)
    return Batches(ConversationRows(rendered, fill_up(rows, args.per_device_eval_batch_size * args.world_size)), collator, 1)


def with_images(collator: Collator, processor: GPTProcessor | None) -> Collator | ImageCollator:
    """Let a collator read images, for a model that does."""
    return collator if processor is None else ImageCollator(collator, processor.image_processor)


def data_fingerprint(rendered: datasets.Dataset, data: DataArguments, seed: int) -> str:
    """Name what a place in the data means: the conversations in their order, by their lengths, and how many make a step."""
    step = [data.target_examples_per_step, data.total_batch_size, data.max_length, data.packing]
    step += [] if data.total_batch_size is None else [seed]  # of the order of the rows
    return hashlib.sha256(conversation_lengths(rendered).tobytes() + json.dumps(step).encode()).hexdigest()[:16]


def divide(key: str, wanted: int, batch_size: int, world_size: int, row: int = 1) -> int:
    """Return the micro-batches that make up a step, or say which values would do.

    Args:
        wanted: conversations or, with `row` tokens in each row, tokens of a step.
    """
    per_micro_batch = batch_size * world_size * row
    if wanted % per_micro_batch == 0:
        return wanted // per_micro_batch
    below = wanted // per_micro_batch * per_micro_batch
    ways = [f"{key} to {_any_of([below, below + per_micro_batch])}"]
    if wanted % (world_size * row) == 0:
        ways.append(f"per_device_train_batch_size to {_any_of(divisors(wanted // (world_size * row)))}")
    if wanted % (batch_size * row) == 0:
        ways.append(f"the number of processes to {_any_of(divisors(wanted // (batch_size * row)))}")
    unit = "conversations" if row == 1 else "tokens"
    raise RecipeError(
        f"{key} is {wanted}, but {world_size} x {batch_size} rows (processes x per_device_train_batch_size) take {per_micro_batch} {unit} "
        f"at a time, which does not divide it. Set {', or '.join(ways)}."
    )


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _any_of(values: list[int]) -> str:
    """Write the largest values that would do.

    >>> _any_of([0, 8, 16])
    '8 or 16'
    """
    *others, last = [str(value) for value in values if value][-8:]
    return f"{', '.join(others)} or {last}" if others else last
