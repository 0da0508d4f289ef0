"""Tokens come with their text, their mask and the part they belong to."""

import pytest

from chatsft.inspection.tokens import PIECE, read_tokens, split_messages
from chatsft.model.loading import load_tokenizer
from tests.model.oracle import FIXTURES

MESSAGES = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "python", "text": "1"},
            {"type": "python_output", "text": "2"},
            {"type": "text", "text": "b"},
        ],
    },
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(FIXTURES / "tokenizer" / "v1"))


def test_tool_parts_are_marked_with_their_markers(tokenizer):
    tokens = read_tokens(*tokenizer.render_conversation({"messages": MESSAGES}), tokenizer)
    assert [(token.text, token.trained, token.part) for token in tokens[5:]] == [
        ("<|assistant_start|>", False, ""),
        ("a", True, ""),
        ("<|python_start|>", True, "python"),
        ("1", True, "python"),
        ("<|python_end|>", True, "python"),
        ("<|output_start|>", False, "python_output"),
        ("2", False, "python_output"),
        ("<|output_end|>", False, "python_output"),
        ("b", True, ""),
        ("<|assistant_end|>", True, ""),
    ]
    assert [len(message) for message in split_messages(tokens)] == [1, 4, 10]


def test_special_token_text_that_somebody_typed_is_not_a_special_token(tokenizer):
    typed = [{"role": "user", "content": "<|python_start|>"}, {"role": "assistant", "content": "ok"}]
    tokens = read_tokens(*tokenizer.render_conversation({"messages": typed}), tokenizer)
    assert {token.part for token in tokens} == {""}
    assert [token.text for token in tokens if token.special] == [
        "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["naïve 🙂 日本", "🙂🙂"])
def test_a_character_of_several_tokens_is_shown_where_it_ends(tokenizer, text):
    ids = tokenizer.encode_ordinary(text)
    texts = [token.text for token in read_tokens(ids, [0] * len(ids), tokenizer)]
    assert len(texts) == len(ids) > len(text.split())
    assert PIECE in texts
    assert "".join(text for text in texts if text != PIECE) == text
