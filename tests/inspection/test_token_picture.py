"""A conversation is drawn token by token, in the colors of its mask, within the picture's width."""

from xml.etree import ElementTree

import pytest

from chatsft.inspection.token_picture import COLORS, LEGEND, draw_tokens
from chatsft.model.loading import load_tokenizer
from tests.model.oracle import FIXTURES

SVG = "{http://www.w3.org/2000/svg}"
TOOL = [
    {"type": "text", "text": "a "},
    {"type": "python", "text": "1<2"},
    {"type": "python_output", "text": "2"},
    {"type": "text", "text": "\nb"},
]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": TOOL}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(FIXTURES / "tokenizer" / "v1"))


def draw(tokenizer, messages, **options):
    picture = ElementTree.fromstring(draw_tokens(*tokenizer.render_conversation({"messages": messages}), tokenizer, **options))
    boxes, texts = list(picture.iter(f"{SVG}rect")), list(picture.iter(f"{SVG}text"))
    return picture, boxes, texts


def test_every_token_has_its_text_and_the_color_of_its_mask(tokenizer):
    picture, boxes, texts = draw(tokenizer, MESSAGES)
    assert {element.tag.removeprefix(SVG) for element in picture.iter()} == {"svg", "title", "rect", "text"}
    ids, mask = tokenizer.render_conversation({"messages": MESSAGES})
    tokens = [tokenizer.decode([token]).replace(" ", "·").replace("\n", "↵") for token in ids]
    assert [text.text for text in texts] == tokens
    special = [token in tokenizer.all_special_ids for token in ids]
    assert [box.get("fill") for box in boxes] == [
        COLORS[bool(trained), is_special][0] for trained, is_special in zip(mask, special, strict=True)
    ]
    fills = dict(zip(tokens, (box.get("fill") for box in boxes), strict=True))
    assert fills["<|assistant_end|>"] == fills["<|python_end|>"] != fills["<|output_start|>"] == fills["<|bos|>"]


def test_each_message_begins_a_line_and_no_line_is_too_long(tokenizer):
    picture, boxes, texts = draw(tokenizer, [*MESSAGES, {"role": "user", "content": "on and " * 60}, *MESSAGES[1:]])
    starts = [text for text in texts if text.text in ("<|user_start|>", "<|assistant_start|>")]
    assert [float(text.get("x")) == min(float(other.get("x")) for other in texts) for text in starts] == [False, True, True, True]
    edges = [(float(box.get("x")) + float(box.get("width")), float(box.get("y")) + float(box.get("height"))) for box in boxes]
    assert max(right for right, _ in edges) <= float(picture.get("width"))
    assert max(bottom for _, bottom in edges) <= float(picture.get("height"))


def test_the_legend_comes_last_and_only_if_asked_for(tokenizer):
    _, _, plain = draw(tokenizer, MESSAGES)
    picture, boxes, texts = draw(tokenizer, MESSAGES, legend=True)
    assert [text.text for text in texts] == [*(text.text for text in plain), *(text for text, _, _ in LEGEND)]
    assert float(boxes[-1].get("y")) + float(boxes[-1].get("height")) <= float(picture.get("height"))


def test_a_notebook_draws_it_and_elsewhere_it_is_text(tokenizer):
    picture = draw_tokens(*tokenizer.render_conversation({"messages": MESSAGES}), tokenizer)
    assert picture._repr_svg_() == str(picture)
    assert picture.startswith("<svg ")
    assert "<svg" not in repr(picture)
