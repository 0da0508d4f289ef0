"""Ids of an answer, read back as its parts."""

import itertools

import pytest

from chatsft.dialogue.parts import answer_parts
from chatsft.dialogue.turns import Turn, mark, show_turns, turn_of_message, unmark

PARTS = [
    {"type": "text", "text": "So "},
    {"type": "python", "text": "9-13"},
    {"type": "python_output", "text": "-4"},
    {"type": "text", "text": " it is 🦄."},
]


@pytest.fixture
def ids(tokenizer) -> list[int]:
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": PARTS}]
    prompt = tokenizer.render_for_completion({"messages": messages})
    return tokenizer.render_conversation({"messages": messages})[0][len(prompt) :]


def test_the_parts_are_those_that_were_rendered(tokenizer, ids):
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<|assistant_end|>"
    assert answer_parts(ids, tokenizer) == answer_parts(ids[:-1], tokenizer) == PARTS


def test_an_unfinished_answer_has_its_parts_so_far_and_no_half_character(tokenizer, ids):
    shown = ["".join(part["text"] for part in answer_parts(ids[:length], tokenizer)) for length in range(len(ids) + 1)]
    assert shown[0] == ""
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert answer_parts([tokenizer.convert_tokens_to_ids("<|python_start|>")], tokenizer) == [{"type": "python", "text": ""}]


def test_a_dialogue_shows_tool_calls_under_a_title_and_all_text_as_it_is(speaker, ids):
    dialogue = show_turns([Turn("<b>1</b> & <", (ids,))], 0, speaker)
    assert [message["role"] for message in dialogue] == ["user", "assistant", "assistant", "assistant"]
    assert unmark(dialogue[0]["content"]) == "<b>1</b> & <"
    assert "<b" not in dialogue[0]["content"]
    assert dialogue[2] == {"role": "assistant", "content": "9-13 = -4", "metadata": {"title": "calculator"}}
    assert [turn_of_message(dialogue * 2, index) for index in range(8)] == [0] * 4 + [1] * 4


def test_tags_in_an_answer_are_escaped(speaker):
    answer = speaker.tokenizer.encode_ordinary("<img src=x> &amp;")
    assert show_turns([Turn("", (answer,))], 0, speaker)[1]["content"] == "&lt;img src=x&gt; &amp;amp;"


@pytest.mark.parametrize("text", ["<b>", "</b>", "<!-- x", "&lt;", "&#60;", "a<b", "1 < 2 & 3", "<<i>", "<|bos|>"])
def test_a_marked_text_holds_nothing_for_a_browser_and_goes_back(text):
    assert unmark(mark(text)) == text
    assert mark(text).replace("\u2060", "") == text
    assert not any(f"<{letter}" in mark(text) or f"&{letter}" in mark(text) for letter in "abil/!?#")
