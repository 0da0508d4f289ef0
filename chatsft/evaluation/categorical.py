"""Multiple choice: which of the valid letters does the model find likeliest as the next token."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatsft.evaluation.problems import Problem, ProblemResult, judge
from chatsft.evaluation.token_losses import last_token_logits, pad_right
from chatsft.tasks import Task


def choose_letters(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, batches: list[list[Problem]]
) -> list[ProblemResult]:
    """Answer each problem by the likeliest of its conversation's `letters`; equally likely ones go to the first.

    The host reads nothing back before the last batch is on its way.
    """
    problems = [problem for batch in batches for problem in batch]
    token_ids = _letter_ids(tokenizer, problems)
    choices, start = [], 0
    for batch in batches:
        logits = last_token_logits(model, [problem.prompt_ids for problem in batch])
        choices.append(_letter_logits(logits, token_ids[start : start + len(batch)]))
        start += len(batch)
    places = [place for logits in choices for place in logits.cpu().argmax(dim=1).tolist()]
    answers = [[problem.conversation["letters"][place]] for problem, place in zip(problems, places, strict=True)]
    return judge(task, tokenizer, problems, answers)


def _letter_logits(logits: torch.Tensor, token_ids: list[list[int]]) -> torch.Tensor:
    """Pick each row's logits of its own tokens; rows with fewer of them end in -inf.

    >>> _letter_logits(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), [[2, 0], [1]])
    tensor([[3., 1.],
            [5., -inf]])
    """
    columns = pad_right(token_ids, filler=-1).to(logits.device)
    return logits.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -torch.inf)


def _letter_ids(tokenizer: PreTrainedTokenizerBase, problems: list[Problem]) -> list[list[int]]:
    """Find the tokens of all letters, before anything is computed."""
    known: dict[str, int] = {}
    for problem in problems:
        for letter in problem.conversation["letters"]:
            if letter not in known:
                known[letter] = _letter_id(tokenizer, letter, problem.index)
    return [[known[letter] for letter in problem.conversation["letters"]] for problem in problems]


def _letter_id(tokenizer: PreTrainedTokenizerBase, letter: str, index: int) -> int:
    ids = tokenizer.encode(letter, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"problem {index}: the answer letter {letter!r} is {len(ids)} tokens of this tokenizer, expected one. "
            "Name the choices by single letters."
        )
    return ids[0]
