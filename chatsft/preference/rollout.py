"""Answers to learn from, written by the model itself with the tool in the loop."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.modeling import is_peft_model
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from chatsft.evaluation.model_copy import copy_for_evaluation, refresh_copy
from chatsft.evaluation.task_evaluation import evaluating
from chatsft.generation.tool_state import sampled_mask
from chatsft.generation.tool_use import generate_completions, max_prompt_tokens
from chatsft.model.tokenization_gpt import GPTTokenizer


def rollout(prompts: list[list[dict]], trainer: GRPOTrainer) -> dict[str, list]:
    """Answer prompts for GRPO: a rollout function of TRL.

    Returns:
        `prompt_ids`, `completion_ids` with the token that ended the answer, and `env_mask`, which is 0 where a tool's result was forced:
        these tokens are not the model's own, and TRL leaves them out of the loss. `logprobs` is None: the answers are the model's of now.
    """
    tokenizer, limit = trainer.processing_class, trainer.max_completion_length
    with answering(trainer) as model, evaluating(model), torch.no_grad():
        prompt_ids = render_prompts(prompts, tokenizer, max_prompt_tokens(model.config, limit))
        completions = generate_completions(
            model,
            tokenizer,
            prompt_ids,
            max_new_tokens=limit,
            temperature=trainer.temperature,
            top_k=trainer.top_k,
            repetition_penalty=trainer.repetition_penalty,
            keep_end=True,
        )
    completion_ids = [completion for [completion] in completions]
    env_mask = [sampled_mask(ids, tokenizer) for ids in completion_ids]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None, "env_mask": env_mask}


def render_prompts(prompts: list[list[dict]], tokenizer: GPTTokenizer, max_tokens: int) -> list[list[int]]:
    """Render messages to the ids that ask for an answer, as `chatsft.eval` does; too long ones lose their beginning."""
    rendered = [tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in prompts]
    return [ids[-max_tokens:] for ids in rendered]


@contextmanager
def answering(trainer: GRPOTrainer) -> Iterator[PreTrainedModel]:
    """Lend the model as it is now, to write with.

    In bfloat16 that is a copy, kept and brought up to date from rollout to rollout: under autocast every token would round all weights
    anew, and what the decode loop captured for the copy goes on serving.
    """
    if not trainer.args.bf16 or is_peft_model(trainer.model):
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, trainer.accelerator.autocast():
            yield model
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if trainer.writer is None:
        trainer.writer = copy_for_evaluation(model, torch.bfloat16)
    else:
        refresh_copy(trainer.writer, model)
    yield trainer.writer
