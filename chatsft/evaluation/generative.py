"""Written answers: sample completions, with tool use, and let the task judge the text."""

from transformers import PreTrainedModel

from chatsft.evaluation.problems import Problem, ProblemResult, judge
from chatsft.generation.tool_use import generate_completions
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.tasks import Task


def write_answers(
    model: PreTrainedModel,
    tokenizer: GPTTokenizer,
    task: Task,
    problems: list[Problem],
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 50,
    num_samples: int = 1,
    seed: int | None = 42,
) -> list[ProblemResult]:
    """Answer a batch of problems with `num_samples` completions each; a greedy one is made once and counted that often."""
    completions = generate_completions(
        model,
        tokenizer,
        [problem.prompt_ids for problem in problems],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        num_samples=num_samples,
        seed=seed,
    )
    return [
        judge(task, problem, tokenizer, [tokenizer.decode(ids) for ids in drawn])
        for problem, drawn in zip(problems, completions, strict=True)
    ]
