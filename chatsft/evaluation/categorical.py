"""Multiple choice: which of the valid letters does the model find likeliest as the next token."""

import torch
from transformers import PreTrainedModel

from chatsft.evaluation.problems import Problem, ProblemResult, judge
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.tasks import Task


@torch.no_grad()
def choose_letters(model: PreTrainedModel, tokenizer: GPTTokenizer, task: Task, problems: list[Problem]) -> list[ProblemResult]:
    """Answer a batch of problems, each by the likeliest of its conversation's `letters`; equal ones go to the first."""
    logits = _next_token_logits(model, [problem.prompt_ids for problem in problems])
    results = []
    for problem, row in zip(problems, logits, strict=True):
        letters = problem.conversation["letters"]
        choice = row[[_letter_id(tokenizer, letter) for letter in letters]].argmax().item()
        results.append(judge(task, problem, tokenizer, [letters[choice]]))
    return results


def _next_token_logits(model: PreTrainedModel, prompts: list[list[int]]) -> torch.Tensor:
    """Return the logits after each prompt, (batch, vocabulary), on the CPU.

    Prompts are padded on the right, where a causal model never looks. Only positions at which a prompt ends get logits.
    """
    width = max(map(len, prompts))
    padded = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=model.device)
    ends, columns = torch.tensor([len(prompt) - 1 for prompt in prompts]).unique(return_inverse=True)
    logits = model(input_ids=padded, logits_to_keep=ends.to(model.device), use_cache=False).logits
    return logits[torch.arange(len(prompts)), columns].float().cpu()


def _letter_id(tokenizer: GPTTokenizer, letter: str) -> int:
    ids = tokenizer.encode_ordinary(letter)
    if len(ids) != 1:
        raise ValueError(
            f"answer letter {letter!r} is {len(ids)} tokens of this tokenizer, expected one. Name the choices by single letters."
        )
    return ids[0]
