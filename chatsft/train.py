"""Fine-tune a base model into a chat model.

    chatsft train recipes/quickstart.yaml [key=value ...]
    accelerate launch -m chatsft.train recipes/sft.yaml model_name_or_path=base tokenizer_path=tokenizer output_dir=runs/mine

Without a terminal, or with disable_tqdm=true, a run prints a line for every log.
"""

# Recipe, model, data, batches, trainer: train() reads downward, and each line names the file that does it.

import argparse
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import datasets
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from chatsft.adapters import (
    add_adapter,
    base_fingerprint,
    check_adapter_arguments,
    quantization_options,
)
from chatsft.arguments import ChatArguments, DataArguments, ModelArguments, RecipeError
from chatsft.callbacks import FinalEvaluation, set_verbosity
from chatsft.data.collator import EvaluationCollator, FlatteningCollator, PaddingCollator
from chatsft.data.mixture import load_mixture
from chatsft.data.packing import ConversationRows, conversation_lengths, fill_up, pack_rows, pack_steps, shuffle_rows, single_rows
from chatsft.data.rendering import render_dataset, supervision_statistics
from chatsft.evaluation.task_selection import select_tasks
from chatsft.faults import TrainingFault
from chatsft.health_warnings import HealthWarnings
from chatsft.live_view import choose_console
from chatsft.model.head_loss import chunk_size
from chatsft.model.loading import load_model_and_tokenizer
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.packed_attention import prepare_attention
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.nanochat_origin import find_origin
from chatsft.plan import Batching, describe_plan
from chatsft.recipe import Recipe, load_recipe
from chatsft.run_folder import RunRecord, save_run
from chatsft.task_metrics import TaskMetrics
from chatsft.tasks import Task
from chatsft.trainer import ChatTrainer, can_skip_logits
from chatsft.warm_start import plan_warm_start

logger = logging.getLogger(__name__)

EVALUATED_TOGETHER = 16
"""Batches of the validation loss that go through the model at a time; which conversations make a batch is the recipe's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; bad input ends it with one line on stderr and exit code 2, before anything is written.

    Exit code 1 is a run that faults ended, with a checkpoint; SIGTERM ends it with a checkpoint and 0.
    """
    options, overrides = make_parser().parse_known_args(argv)
    try:
        train(load_recipe(options.recipe, overrides))
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingFault as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatsft train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file; any key can follow as key=value or --key value")
    return parser


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> ChatTrainer | None:
    """Train as the recipe says, save the model in output_dir, and return the trainer; a dry run prints its plan and returns None."""
    args, data = recipe.training, recipe.data
    set_verbosity(args.process_index == 0)
    warm_start = plan_warm_start(recipe.model, args.optimizer)
    model, tokenizer = load_model(recipe.model, data)
    with args.main_process_first(desc="data"):
        eval_tasks = load_eval_tasks(recipe, tokenizer) if args.eval_tasks else {}
        train_rendered = load_rendered("train_mixture", data.train_mixture, recipe, tokenizer)
        eval_rendered = load_rendered("eval_mixture", data.eval_mixture, recipe, tokenizer) if data.eval_mixture else None
    fingerprint = base_fingerprint(model, recipe.model)
    origin = find_origin(recipe.model.model_name_or_path) if isinstance(model, GPTForCausalLM) else None
    if recipe.model.lora_r is not None:
        set_seed(args.seed)
        model = add_adapter(model, tokenizer, recipe.model)
    pad_token_id = padding_id(tokenizer)
    batches = plan_batches(train_rendered, data, args.per_device_train_batch_size, args.world_size, pad_token_id, args.seed)
    args.gradient_accumulation_steps = batches.gradient_accumulation_steps
    if args.dry_run:
        if args.process_index == 0:
            print(describe_plan(model, args, describe_batches(train_rendered, batches, args, data.max_length)))
        return None
    evaluation = eval_rendered and plan_evaluation(eval_rendered, args, pad_token_id, data.packing and can_skip_logits(model))
    console = choose_console(args)
    trainer = ChatTrainer(
        model=model,
        args=args,
        train_dataset=batches.dataset,
        eval_dataset=evaluation and evaluation.dataset,
        data_collator=batches.collator,
        eval_data_collator=evaluation and evaluation.collator,
        processing_class=tokenizer,
        data_fingerprint=data_fingerprint(train_rendered, data),
        callbacks=[console, FinalEvaluation, HealthWarnings, RunRecord(recipe), *warm_start, *callbacks],
    )
    trainer.origin = None if recipe.model.lora_r else origin
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if eval_tasks:
        trainer.add_callback(TaskMetrics(trainer, eval_tasks, tokenizer, trainer.throughput))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.ending is None:
        save_run(trainer, recipe, Counter(train_rendered["source"]), origin, fingerprint)
    else:
        steps = (trainer.state.global_step, trainer.state.max_steps)
        logger.warning("%s: stopped after %d of %d steps. Go on with resume_from_checkpoint=true", trainer.ending, *steps)
    return trainer


class Batches(NamedTuple):
    """A dataset of rows in training order, what collates them, and how many micro-batches make a step."""

    dataset: Dataset
    collator: FlatteningCollator | PaddingCollator
    gradient_accumulation_steps: int


def load_model(model_args: ModelArguments, data: DataArguments):
    """Load model and tokenizer, choose the attention and check that rows of max_length fit the model."""
    check_adapter_arguments(model_args)
    name, attention = model_args.model_name_or_path, model_args.attn_implementation
    options = quantization_options(model_args)
    model, tokenizer = load_model_and_tokenizer(name, model_args.tokenizer_path, attn_implementation=attention, **options)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and data.max_length > longest:
        raise RecipeError(f"max_length is {data.max_length}, but {name} was trained on at most {longest} tokens.")
    prepare_attention(model, attention, data.packing)
    return model, tokenizer


def load_rendered(key: str, entries: list, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Load a mixture and render it to input_ids and assistant_masks."""
    data = recipe.data
    places = {"data_root": data.data_root, "folders": (recipe.folder, ".")}
    mixture = load_mixture(entries, **places, order=data.mixture_order, on_bad_row=data.on_bad_row)
    rendered = render_dataset(mixture, tokenizer, data.max_length, num_proc=data.dataset_num_proc, on_bad_row=data.on_bad_row)
    if not any(mask.any() for batch in rendered.with_format("numpy").iter(1000) for mask in batch["assistant_masks"]):
        raise RecipeError(f"{key} has no token to train on: in every conversation the assistant's part is missing or cut off.")
    return rendered


def load_eval_tasks(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, Task]:
    """Load the test sets of eval_tasks, and see that the model can be asked."""
    if not isinstance(tokenizer, GPTTokenizer):
        name = recipe.model.model_name_or_path
        raise RecipeError(f"eval_tasks asks in nanochat's chat format, which the tokenizer of {name} does not know. Leave eval_tasks out.")
    if recipe.model.load_in_4bit:
        raise RecipeError("eval_tasks cannot copy a base of four bits to evaluate it. Leave it out and run chatsft.eval on output_dir.")
    return select_tasks(recipe.training.eval_tasks, recipe.data.data_root)


def data_fingerprint(rendered: datasets.Dataset, data: DataArguments) -> str:
    """Name what a place in the data means: the conversations in their order, by their lengths, and how many make a step."""
    step = [data.target_examples_per_step, data.total_batch_size, data.max_length, data.packing]
    return hashlib.sha256(conversation_lengths(rendered).tobytes() + json.dumps(step).encode()).hexdigest()[:16]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills rows up; where a tokenizer has none any will do, as nothing is trained on it and nothing sees it."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


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


if __name__ == "__main__":
    sys.exit(main())
