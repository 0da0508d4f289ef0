"""Reward a chat model for right answers (GRPO), with the tool in the loop.

    accelerate launch -m chatsft.grpo recipes/grpo_gsm8k.yaml [key=value ...]

TRL's GRPOTrainer does the learning. Rewards are the tasks' own scores, and keys of a recipe are those of TRL's GRPOConfig and
of `chatsft/preference/arguments.py`.
"""

import argparse
import sys
from collections.abc import Sequence

from transformers import TrainerCallback

from chatsft.arguments import ModelArguments, RecipeError
from chatsft.callbacks import FinalEvaluation, set_verbosity
from chatsft.model.nanochat_checkpoint import is_nanochat_checkpoint
from chatsft.preference.arguments import GRPOArguments, PromptArguments
from chatsft.preference.console import RewardLines
from chatsft.preference.policy import load_policy
from chatsft.preference.prompts import load_prompts, task_reward
from chatsft.preference.run import run
from chatsft.preference.trainers import ToolGRPOTrainer
from chatsft.program import recipe_parser, run_recipe
from chatsft.recipe import Recipe
from chatsft.task_metrics import load_eval_tasks

ARGUMENTS = (ModelArguments, PromptArguments, GRPOArguments)
CURVES = {"reward": "reward", "validation reward": "eval_reward"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    return run_recipe(train, make_parser(), argv, ARGUMENTS)


def make_parser() -> argparse.ArgumentParser:
    return recipe_parser("grpo", __doc__)


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> ToolGRPOTrainer:
    """Train as the recipe says, save the model in output_dir, and return the trainer."""
    args, data = recipe.training, recipe.data
    set_verbosity(args.process_index == 0)
    eval_tasks = load_eval_tasks(args.eval_tasks, data.data_root, recipe.model.load_in_4bit)
    prompts, judges = load_prompts(data.train_mixture, data.data_root, "train_mixture")
    eval_prompts, eval_judges = load_prompts(data.eval_mixture, data.data_root, "eval_mixture") if data.eval_mixture else (None, [])
    if eval_prompts is not None:  # judged after the training tasks, in one list
        eval_prompts = eval_prompts.map(lambda row: {"judge": row["judge"] + len(judges)})
    if len(prompts) < (at_a_time := args.generation_batch_size // args.num_generations):
        raise RecipeError(
            f"train_mixture has {len(prompts)} problems, but {at_a_time} are answered at a time (processes x per_device_train_batch_size x "
            "steps_per_generation / num_generations). Add problems, or set one of these lower."
        )
    if args.beta and is_nanochat_checkpoint(recipe.model.model_name_or_path):
        raise RecipeError(
            "beta needs a reference model, which TRL loads from a saved model. Convert the checkpoint first: chatsft.convert to-hf."
        )
    policy = load_policy(recipe.model, args.seed, with_reference=False)
    trainer = ToolGRPOTrainer(
        model=policy.model,
        reward_funcs=task_reward([*judges, *eval_judges], policy.tokenizer),
        args=args,
        train_dataset=prompts,
        eval_dataset=eval_prompts,
        processing_class=policy.tokenizer,
        callbacks=[RewardLines, FinalEvaluation, *callbacks],
    )
    run(trainer, recipe, policy, eval_tasks, prompts["source"], CURVES)
    return trainer


if __name__ == "__main__":
    sys.exit(main())
