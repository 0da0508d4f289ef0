"""Penalties reach model.generate() and do what transformers does; without them nothing changes."""

import pytest

from chatsft.generation.penalties import penalty_options
from chatsft.generation.tool_use import generate_completions
from tests.generation.scripted_model import ScriptedModel

WORDS = "one two three four five six seven eight"


def test_no_penalty_sets_no_option():
    assert penalty_options(1.0, None) == {}
    assert penalty_options(1.2, [16.0, 1.5]) == {"repetition_penalty": 1.2, "exponential_decay_length_penalty": (16, 1.5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [((0.0, None), "repetition_penalty is 0.0"), ((1.0, (-1, 1.5)), "is -1 1.5"), ((1.0, (8, 0.5)), "a factor of 1 or more")],
)
def test_penalties_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        penalty_options(*options)


def test_a_repetition_penalty_keeps_a_model_from_saying_the_same_again(tokenizer):
    one, two = (tokenizer.encode_ordinary(word)[0] for word in ("one", "two"))
    prompt = [tokenizer.bos_token_id]
    for penalty, expected in ((1.0, [one, one, one]), (3.0, [one, two, one])):
        model = HesitantModel([one] * 8, second=two)
        assert generate_completions(model, tokenizer, [prompt], max_new_tokens=3, repetition_penalty=penalty) == [[expected]]


class HesitantModel(ScriptedModel):
    """Say the script, with one other token as second choice."""

    def __init__(self, script: list[int], second: int):
        super().__init__(script, margin=1.0)
        self.second = second

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        output.logits[:, -1, self.second] = 0.5
        return output


def test_a_length_penalty_ends_an_answer_after_its_start_but_never_a_forced_result(tokenizer):
    prompt = [tokenizer.bos_token_id]
    call = [tokenizer.encode_special("<|python_start|>"), *tokenizer.encode_ordinary("12*34"), tokenizer.encode_special("<|python_end|>")]
    script = [*call, *tokenizer.encode_ordinary(WORDS)[:1] * 40]
    model = HesitantModel(script, second=tokenizer.encode_special("<|assistant_end|>"))
    [[plain]] = generate_completions(model, tokenizer, [prompt], max_new_tokens=30)
    model.place = 0
    [[short]] = generate_completions(
        model, tokenizer, [prompt], max_new_tokens=30, exponential_decay_length_penalty=(len(call) - 1, 3.0), temperature=0.0
    )
    result = [tokenizer.encode_special("<|output_start|>"), *tokenizer.encode_ordinary("408"), tokenizer.encode_special("<|output_end|>")]
    assert len(plain) == 30
    assert short == [*call, *result]
    assert plain[: len(short)] == short


def test_penalties_work_beside_sampling(tokenizer):
    model = ScriptedModel(tokenizer.encode_ordinary(WORDS), margin=2.0)
    [[answer]] = generate_completions(
        model,
        tokenizer,
        [[tokenizer.bos_token_id]],
        max_new_tokens=8,
        temperature=1.0,
        top_k=5,
        seed=0,
        repetition_penalty=1.3,
        exponential_decay_length_penalty=(2, 1.1),
    )
    assert 1 <= len(answer) <= 8
