from chatsft.evaluation.problems import batch_by_length, judge, render_problems
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


def test_batches_hold_every_item_once_longest_first():
    items = ["a" * length for length in [3, 1, 4, 1, 5, 9, 2]]
    assert [list(map(len, batch)) for batch in batch_by_length(items, len, 3)] == [[9, 5, 4], [3, 2, 1], [1]]
    assert batch_by_length([], len, 3) == []


def test_a_batch_is_full_at_either_limit_and_padding_counts():
    items = ["a" * length for length in [3, 1, 4, 1, 5, 9, 2]]
    assert [list(map(len, batch)) for batch in batch_by_length(items, len, 3, max_tokens=10)] == [[9], [5, 4], [3, 2, 1], [1]]
    assert [list(map(len, batch)) for batch in batch_by_length(items, len, max_tokens=8)] == [[9], [5], [4, 3], [2, 1, 1]]


def test_a_result_shows_the_answer_of_the_data_as_completions_are_shown():
    task, tokenizer = recorded_task("spellingbee"), load_tokenizer()
    [problem] = render_problems(task, tokenizer, 256, max_problems=1)
    ids, _ = tokenizer.render_conversation(task[0])
    answer = tokenizer.decode(ids[len(problem.prompt_ids) : -1])
    assert "<|python_start|>" in answer
    [result] = judge(task, tokenizer, [problem], [[answer]])
    assert (result.expected, result.completions, result.correct) == (answer, [answer], [True])
