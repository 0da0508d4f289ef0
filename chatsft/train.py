"""Fine-tune a base model into a chat model.

    chatsft train recipes/quickstart.yaml [key=value ...]
    accelerate launch -m chatsft.train recipes/sft.yaml model_name_or_path=base tokenizer_path=tokenizer output_dir=runs/mine

Without a terminal, or with disable_tqdm=true, a run prints a line for every log.
"""

# Recipe, model, data, batches, trainer: train() reads downward, and each line names the file that does it.

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from chatsft.adapters import (
    add_adapter,
    base_fingerprint,
    check_adapter_arguments,
    quantization_options,
)
from chatsft.arguments import ChatArguments, DataArguments, ModelArguments, RecipeError
from chatsft.batches import data_fingerprint, describe_batches, load_rendered, plan_batches, plan_evaluation, with_images
from chatsft.callbacks import FinalEvaluation, set_verbosity
from chatsft.health_warnings import HealthWarnings
from chatsft.live_view import choose_console
from chatsft.model.loading import load_model_and_tokenizer
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.packed_attention import prepare_attention
from chatsft.model.vision import add_encoder, add_image_tokens, freeze_encoder, load_processor, reads_images
from chatsft.nanochat_origin import find_origin
from chatsft.plan import describe_plan
from chatsft.program import recipe_parser, run_recipe
from chatsft.recipe import Recipe
from chatsft.run_folder import train_and_save
from chatsft.task_metrics import TaskMetrics, load_eval_tasks
from chatsft.trainer import ChatTrainer, can_skip_logits
from chatsft.warm_start import plan_warm_start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; exit code 1 is a run that faults ended, with a checkpoint; SIGTERM ends it with a checkpoint and 0."""
    return run_recipe(train, make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    return recipe_parser("train", __doc__)


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> ChatTrainer | None:
    """Train as the recipe says, save the model in output_dir, and return the trainer; a dry run prints its plan and returns None."""
    args, data = recipe.training, recipe.data
    set_verbosity(args.process_index == 0)
    warm_start = plan_warm_start(recipe.model, args.optimizer)
    model, tokenizer = load_model(recipe.model, data, args)
    processor = load_processor(tokenizer, recipe.model.vision_model or recipe.model.model_name_or_path) if reads_images(model) else None
    with args.main_process_first(desc="data"):
        eval_tasks = load_eval_tasks(args.eval_tasks, data.data_root, recipe.model.load_in_4bit)
        train_rendered = load_rendered("train_mixture", data.train_mixture, recipe, tokenizer)
        eval_rendered = load_rendered("eval_mixture", data.eval_mixture, recipe, tokenizer) if data.eval_mixture else None
    fingerprint = base_fingerprint(model, recipe.model)
    origin = find_origin(recipe.model.model_name_or_path) if isinstance(model, GPTForCausalLM) and processor is None else None
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
        data_collator=with_images(batches.collator, processor),
        eval_data_collator=evaluation and with_images(evaluation.collator, processor),
        processing_class=processor or tokenizer,
        data_fingerprint=data_fingerprint(train_rendered, data, args.seed),
        callbacks=[console, FinalEvaluation, HealthWarnings, *warm_start, *callbacks],
    )
    if eval_tasks:
        trainer.add_callback(TaskMetrics(trainer, eval_tasks, tokenizer, trainer.throughput))
    train_and_save(trainer, recipe, Counter(train_rendered["source"]), origin, fingerprint)
    return trainer


def load_model(model_args: ModelArguments, data: DataArguments, args: ChatArguments):
    """Load model and tokenizer, choose the attention and check that rows of max_length fit the model."""
    check_adapter_arguments(model_args)
    name, attention = model_args.model_name_or_path, model_args.attn_implementation
    options = quantization_options(model_args)
    model, tokenizer = load_model_and_tokenizer(name, model_args.tokenizer_path, attn_implementation=attention, **options)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and data.max_length > longest:
        raise RecipeError(f"max_length is {data.max_length}, but {name} was trained on at most {longest} tokens.")
    if model_args.vision_model is not None:
        add_image_tokens(tokenizer, model_args.vision_model)
        set_seed(args.seed)
        model = add_encoder(model, tokenizer, model_args.vision_model)
    if reads_images(model):
        if model_args.lora_r is not None:
            raise RecipeError(f"lora_r adapts models that read text only, but {name} reads images. Leave it out.")
        freeze_encoder(model)
    if not (isinstance(model, GPTForCausalLM) or model_args.load_in_4bit or args.is_sharded):
        model.to(args.device)  # where its attention is tried
    with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
        prepare_attention(model, attention, data.packing)
    return model, tokenizer


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills rows up; where a tokenizer has none any will do, as nothing is trained on it and nothing sees it."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


if __name__ == "__main__":
    sys.exit(main())
