from chatsft.evaluation.problems import Problem, batch_problems, render_problems
from tests.evaluation.recorded_model import ListTask, load_tokenizer, recorded_task


def user_says(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "A"}], "letters": ["A", "B"]}


def test_prompts_are_those_of_render_for_completion():
    task, tokenizer = recorded_task("spellingbee"), load_tokenizer()
    problems = render_problems(task, tokenizer, max_tokens=256)
    assert [problem.prompt_ids for problem in problems] == [tokenizer.render_for_completion(task[i]) for i in range(len(task))]
    assert not any(problem.truncated for problem in problems)


def test_a_long_prompt_loses_its_beginning():
    tokenizer = load_tokenizer()
    task = ListTask([user_says("a short one"), user_says("a " * 3000 + "the question at last")], "categorical")
    short, long = render_problems(task, tokenizer, max_tokens=20)
    assert (short.truncated, long.truncated) == (False, True)
    assert len(long.prompt_ids) == 20
    assert tokenizer.decode(long.prompt_ids).endswith(" the question at last<|user_end|><|assistant_start|>")


def test_a_prompt_of_exactly_the_limit_is_kept():
    task, tokenizer = ListTask([user_says("hello")], "categorical"), load_tokenizer()
    length = len(tokenizer.render_for_completion(task[0]))
    assert not render_problems(task, tokenizer, max_tokens=length)[0].truncated


def test_max_problems_takes_the_first_ones():
    task, tokenizer = recorded_task("arc"), load_tokenizer()
    assert [problem.index for problem in render_problems(task, tokenizer, 256, max_problems=3)] == [0, 1, 2]
    assert len(render_problems(task, tokenizer, 256, max_problems=100)) == len(task)


def test_batches_hold_every_problem_once_longest_first():
    problems = [Problem(index, {}, [0] * length, False) for index, length in enumerate([3, 1, 4, 1, 5, 9, 2])]
    batches = batch_problems(problems, 3)
    assert [[len(problem.prompt_ids) for problem in batch] for batch in batches] == [[9, 5, 4], [3, 2, 1], [1]]
    assert sorted(problem.index for batch in batches for problem in batch) == list(range(7))
