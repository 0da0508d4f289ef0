"""Statistics hold for tokenizers that render through a chat template."""

import pytest

from chatsft.data.rendering import render_dataset
from chatsft.inspection.statistics import count_by_source
from tests.inspection.test_statistics import TWO, make_mixture
from tests.other_models import MARKED, UNMARKED, build_tokenizer

ENDLESS = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
)


@pytest.mark.parametrize(("template", "num_open"), [(MARKED, 0), (UNMARKED, 0), (ENDLESS, 2)])
def test_an_answer_that_no_special_token_ends_is_found(template, num_open):
    tokenizer = build_tokenizer(template)
    mixture = make_mixture(("chat", "chat:1", TWO))
    counts = count_by_source(mixture, render_dataset(mixture, tokenizer, 10**6), tokenizer, 1000)["chat"]
    assert (counts.conversations, counts.turns, counts.multi_turn) == (1, 2, 1)
    assert (counts.answers, counts.open_answers) == (2, num_open)
