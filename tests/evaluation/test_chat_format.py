"""Tasks are put to any model in its own chat template's words, and its answers end where its turns end."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatsft.evaluation.chat_format import answer_ends, check_askable, render_prompt
from chatsft.evaluation.task_evaluation import EvaluationOptions, evaluate_task
from tests.evaluation.recorded_model import ListTask
from tests.other_models import FAMILIES, MARKED, UNMARKED, build_tokenizer, save_model

QUESTIONS = ["What is two and three?", "Name a colour.", "Is it grey or blue when it rains?"]
PARTS = [{"type": "python", "text": "2+3"}, {"type": "python_output", "text": "5"}]


def conversations(answer: str | list, **more) -> list[dict]:
    return [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], **more} for text in QUESTIONS]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    folder = save_model(request.param, tmp_path_factory.mktemp(request.param))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def prompt_of(tokenizer, question: str) -> torch.Tensor:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return torch.tensor([tokenizer.encode(text)])


def test_the_likeliest_letter_is_that_of_a_plain_forward_pass(loaded):
    model, tokenizer = loaded
    task = ListTask(conversations("A", letters=["A", "B", "C"]), "categorical")
    report = evaluate_task("letters", task, model, tokenizer)
    letters = [tokenizer.encode(letter)[0] for letter in "ABC"]
    with torch.no_grad():
        expected = ["ABC"[model(prompt_of(tokenizer, text)).logits[0, -1, letters].argmax()] for text in QUESTIONS]
    assert [problem.completions for problem in report.problems] == [[letter] for letter in expected]


def test_an_answer_is_what_generate_writes_up_to_the_end_of_the_turn(loaded):
    model, tokenizer = loaded
    task = ListTask(conversations([{"type": "text", "text": "#### 5"}]), "generative")
    report = evaluate_task("answers", task, model, tokenizer, EvaluationOptions(max_new_tokens=40))
    for problem, text in zip(report.problems, QUESTIONS, strict=True):
        ids = prompt_of(tokenizer, text)
        written = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert problem.completions == [tokenizer.decode(written).removesuffix("<|im_end|>")]
        assert problem.prompt == tokenizer.decode(ids[0])


def test_an_answer_ends_at_every_token_that_ends_a_turn(loaded):
    model, tokenizer = loaded
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    foreign = build_tokenizer()
    foreign.eos_token = "<|endoftext|>"
    assert answer_ends(tokenizer, model) == [ends[1]]
    assert answer_ends(foreign, model) == ends
    foreign.chat_template = UNMARKED.replace("'<|im_end|>'", "''")
    assert answer_ends(foreign, model) == ends  # of its settings
    model.generation_config.eos_token_id = ends
    assert answer_ends(tokenizer, model) == ends


def test_parts_of_a_message_are_asked_as_they_are_trained():
    ids = render_prompt(build_tokenizer(), [{"role": "user", "content": "?"}, {"role": "assistant", "content": PARTS}])
    assert "\n```python\n2+3\n```\n\n```output\n5\n```\n<|im_end|>" in build_tokenizer().decode(ids)


@pytest.mark.parametrize(
    ("template", "message"), [(None, "without a chat template, so nothing can be asked"), ("{{ raise_exception('no') }}", "refuses .*: no")]
)
def test_a_tokenizer_that_cannot_ask_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        check_askable(build_tokenizer(template))
    check_askable(build_tokenizer(MARKED))
