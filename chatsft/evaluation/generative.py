"""Written answers: sample completions, with tool use, and let the task judge the text."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatsft.evaluation.chat_format import answer_ends
from chatsft.evaluation.problems import Problem, ProblemResult, judge
from chatsft.generation.tool_use import generate_completions
from chatsft.tasks import Task


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: list[Problem],
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 50,
    num_samples: int = 1,
    seed: int | None = 42,
    batch_size: int | None = None,
    **penalties,
) -> list[ProblemResult]:
    """Answer problems with `num_samples` completions each; a greedy one is made once and counted that often.

    `penalties` are those of `generate_completions`.
    """
    completions = generate_completions(
        model,
        tokenizer,
        [problem.prompt_ids for problem in problems],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        num_samples=num_samples,
        seed=seed,
        batch_size=batch_size,
        ends=answer_ends(tokenizer, model),
        **penalties,
    )
    return judge(task, tokenizer, problems, [tokenizer.batch_decode(drawn) for drawn in completions])
