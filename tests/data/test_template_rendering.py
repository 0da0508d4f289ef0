"""Conversations through a chat template: the mask is the assistant's text and the token that ends its turn, however it is found."""

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from chatsft.data.rendering import render_dataset
from chatsft.data.template_rendering import ChatTemplateError, join_parts, template_renderer
from chatsft.model.tokenization_gpt import ConversationError
from tests.other_models import MARKED, UNMARKED, build_tokenizer

CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is two and three?"},
        {"role": "assistant", "content": "It is five."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
}
TRAINED = ["It is five.<|im_end|>", "Yes.<|im_end|>"]

# The end of the turn stands outside the markers
SHORT_MARKERS = MARKED.replace("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}")
# Assistant messages of the past lose what stands before '|', as reasoning does in some templates
FORGETFUL = UNMARKED.replace("{{ message['content']", "{{ (message['content'] if loop.last else message['content'].split('|')[-1])")
OPEN_PROMPT = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"


def trained_runs(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[int]) -> list[str]:
    runs = [[]]
    for token_id, trained in zip(ids, mask, strict=True):
        if trained:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("template", [MARKED, UNMARKED, SHORT_MARKERS], ids=["markers", "prefixes", "markers without the end"])
def test_the_assistants_text_and_the_end_of_its_turn_are_trained(template):
    tokenizer = build_tokenizer(template)
    ids, mask = template_renderer(tokenizer)(CONVERSATION)
    assert ids == tokenizer.apply_chat_template(CONVERSATION["messages"], return_dict=False)
    assert trained_runs(tokenizer, ids, mask) == TRAINED


def test_a_template_trl_knows_is_rendered_with_its_training_version():
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = build_tokenizer(qwen3_chat_template)
    ids, mask = template_renderer(tokenizer)(CONVERSATION)
    assert trained_runs(tokenizer, ids, mask) == [f"<think>\n\n</think>\n\n{text}\n" for text in TRAINED]


def test_a_message_rendered_otherwise_once_others_follow_is_named_with_its_place():
    messages = [dict(message) for message in CONVERSATION["messages"]]
    messages[2]["content"] = "Two plus three|It is five."
    rows = Dataset.from_list([{"messages": messages, "origin": "chat.jsonl:7"}])
    with pytest.raises(ConversationError, match=r"^chat\.jsonl:7: where message 2 ends the chat template gives 'Two"):
        render_dataset(rows, build_tokenizer(FORGETFUL), 512)


def test_a_token_across_the_seam_is_named():
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    render = template_renderer(build_tokenizer(plain))
    with pytest.raises(ConversationError, match="where message 1 begins the chat template gives ' ' alone but ' is"):
        render({"messages": [{"role": "user", "content": "five"}, {"role": "assistant", "content": "is"}]})


def test_the_parts_of_a_message_become_one_text_that_is_all_trained():
    parts = [
        {"type": "text", "text": "It is"},
        {"type": "python", "text": "2 + 3"},
        {"type": "python_output", "text": "5"},
        {"type": "text", "text": "five."},
    ]
    tokenizer = build_tokenizer()
    ids, mask = template_renderer(tokenizer)({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": parts}]})
    assert trained_runs(tokenizer, ids, mask) == [f"{join_parts(parts)}<|im_end|>"]
    assert join_parts(parts) == "It is\n```python\n2 + 3\n```\n\n```output\n5\n```\nfive."


def test_a_template_that_never_ends_the_turn_is_warned_about(caplog):
    template_renderer(
        build_tokenizer("{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}{{ '[' if add_generation_prompt }}")
    )
    assert "may not learn to stop" in caplog.text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "without a chat template"),
        (MARKED.replace("{{ message['content'] + '<|im_end|>' }}{% endgen", "{% endgen"), "trains on no token"),
        ("{{ raise_exception('only one turn') }}", "the chat template refuses it: only one turn"),
        (FORGETFUL.replace("split('|')", "split(' ')").replace("'<|im_end|>'", "''"), None),
    ],
    ids=["none", "no token", "refuses", "plain"],
)
def test_a_template_that_cannot_be_trained_with_is_found_before_any_conversation(template, message):
    tokenizer = build_tokenizer(template)
    if message is None:
        assert template_renderer(tokenizer)
        return
    with pytest.raises(ChatTemplateError, match=message):
        template_renderer(tokenizer)


def test_the_cache_of_a_rendering_knows_the_template():
    rows = Dataset.from_list([CONVERSATION])
    whole, short = (
        render_dataset(rows, build_tokenizer(template), 512) for template in (MARKED, MARKED.replace("{{ '\n' }}", "{{ ' ' }}"))
    )
    assert whole["input_ids"] != short["input_ids"]
