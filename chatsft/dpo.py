"""Teach a chat model to prefer one answer to another (DPO).

    accelerate launch -m chatsft.dpo recipes/dpo.yaml [key=value ...]

TRL's DPOTrainer does the learning. Pairs come from files and datasets, or from the model's own answers to a task, a right one and a
wrong one. Keys of a recipe are those of TRL's DPOConfig and of `chatsft/preference/arguments.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from chatsft.arguments import ModelArguments
from chatsft.callbacks import FinalEvaluation, set_verbosity
from chatsft.preference.arguments import DPOArguments, PairArguments
from chatsft.preference.console import RewardLines
from chatsft.preference.pairs import PairCollator, load_pairs
from chatsft.preference.policy import load_policy
from chatsft.preference.run import run
from chatsft.preference.trainers import PairDPOTrainer
from chatsft.program import recipe_parser, run_recipe
from chatsft.recipe import Recipe
from chatsft.task_metrics import load_eval_tasks

ARGUMENTS = (ModelArguments, PairArguments, DPOArguments)
CURVES = {
    "training loss": "loss",
    "validation loss": "eval_loss",
    "chosen over rejected": "rewards/accuracies",
    "validation chosen over rejected": "eval_rewards/accuracies",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    return run_recipe(train, make_parser(), argv, ARGUMENTS)


def make_parser() -> argparse.ArgumentParser:
    return recipe_parser("dpo", __doc__)


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> PairDPOTrainer:
    """Train as the recipe says, save the model in output_dir, and return the trainer."""
    args, data = recipe.training, recipe.data
    set_verbosity(args.process_index == 0)
    eval_tasks = load_eval_tasks(args.eval_tasks, data.data_root, recipe.model.load_in_4bit)
    policy = load_policy(recipe.model, args.seed, with_reference=True)
    folders = [recipe.folder, Path(), *([Path(data.data_root)] if data.data_root else [])]
    writer, tokenizer = policy.reference.to(args.device), policy.tokenizer
    pairs = load_pairs("train_mixture", data.train_mixture, data, folders, writer, tokenizer)
    eval_pairs = load_pairs("eval_mixture", data.eval_mixture, data, folders, writer, tokenizer) if data.eval_mixture else None
    trainer = PairDPOTrainer(
        model=policy.model,
        ref_model=policy.reference,
        args=args,
        data_collator=PairCollator(tokenizer.pad_token_id, args.max_length),
        train_dataset=pairs,
        eval_dataset=eval_pairs,
        processing_class=tokenizer,
        callbacks=[RewardLines, FinalEvaluation, *callbacks],
    )
    run(trainer, recipe, policy, eval_tasks, pairs["source"], CURVES)
    return trainer


if __name__ == "__main__":
    sys.exit(main())
