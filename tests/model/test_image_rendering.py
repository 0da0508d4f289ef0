"""Images in the chat format: placeholders between their markers, in ids and in the template, never cut in half."""

import pytest
import torch
from transformers import AutoTokenizer

from chatsft.model.conversation import CHAT_TEMPLATE, ConversationError, check_conversation
from chatsft.model.images import read_image
from chatsft.model.loading import load_tokenizer
from chatsft.model.processing_gpt import GPTProcessor
from chatsft.model.vision import load_processor
from tests.vision_models import COLOURS, QUICKSTART, answer, ask, data_url, save_encoder, save_square

SYSTEM = {"role": "system", "content": "Be brief."}
IMAGE = "<|image_start|><|image|><|image|><|image|><|image_end|>"


@pytest.fixture
def tokenizer():
    tokenizer = load_tokenizer(str(QUICKSTART))
    tokenizer.add_image_tokens(3)
    return tokenizer


def parts(*contents) -> dict:
    """Make a user message of texts and, as lists of one, images."""
    written = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part[0]} for part in contents]
    return {"role": "user", "content": written}


def test_an_image_renders_to_its_placeholders_which_are_not_trained(tokenizer):
    ids, mask = tokenizer.render_conversation({"messages": [SYSTEM, parts("Look: ", ["a.png"], " and?"), answer("Red.")]})
    assert tokenizer.decode(ids) == (
        f"<|bos|><|user_start|>Be brief.\n\nLook: {IMAGE} and?<|user_end|><|assistant_start|>Red.<|assistant_end|>"
    )
    assert tokenizer.decode([token for token, trained in zip(ids, mask, strict=True) if trained]) == "Red.<|assistant_end|>"


@pytest.mark.parametrize(
    "content", [[["a.png"]], [["a.png"], ["b.png"], "Which?"], ["Look: ", ["a.png"]], ["A ", "b ", ["a.png"], " c", " d"]]
)
@pytest.mark.parametrize("first", [[], [SYSTEM]])
def test_the_template_says_the_same(tokenizer, content, first):
    messages = [*first, parts(*content), answer("Red."), {"role": "user", "content": "Sure?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == text
    assert text.count("<|image|>") == 3 * sum(isinstance(part, list) for part in content)


def test_text_parts_beside_an_image_are_encoded_as_one(tokenizer):
    apart, joined = (tokenizer.render_conversation({"messages": [parts(["a.png"], *texts)]})[0] for texts in (["whe", "re?"], ["where?"]))
    assert apart == joined


def test_typed_markers_stay_text(tokenizer):
    ids, _ = tokenizer.render_conversation({"messages": [parts(["a.png"], f"{IMAGE}"), answer(IMAGE)]})
    special = tokenizer.convert_tokens_to_ids(["<|image_start|>", "<|image|>", "<|image_end|>"])
    assert [ids.count(token) for token in special] == [1, 3, 1]
    assert tokenizer.decode(ids).count(IMAGE) == 3


@pytest.mark.parametrize(("limit", "kept"), [(50, 22), (9, 9), (8, 4), (7, 4), (4, 4), (3, 3)])
def test_a_cut_leaves_out_an_image_that_it_would_go_through(tokenizer, limit, kept):
    conversation = {"messages": [parts("Hi", ["a.png"], " you?"), answer("Red it is.")]}  # <bos> <user_start> H i <image of 5> ...
    whole, _ = tokenizer.render_conversation(conversation)
    ids, mask = tokenizer.render_conversation(conversation, max_tokens=limit)
    assert ids == whole[: min(kept, len(whole))] and len(mask) == len(ids)
    encoding = tokenizer.apply_chat_template(conversation["messages"], truncation=True, max_length=limit)
    assert encoding["input_ids"] == ids


def test_a_cut_from_the_left_leaves_it_out_too(tokenizer):
    tokenizer.truncation_side = "left"
    conversation = [parts("Hi", ["a.png"], " you?"), answer("Red.")]
    whole = tokenizer.apply_chat_template(conversation)["input_ids"]
    after = whole.index(tokenizer.convert_tokens_to_ids("<|image_end|>")) + 1
    for limit in range(1, len(whole)):
        ids = tokenizer.apply_chat_template(conversation, truncation=True, max_length=limit)["input_ids"]
        start = len(whole) - limit
        assert ids == whole[after if after - 5 < start < after else start :]


def test_a_saved_tokenizer_renders_the_same_and_that_of_a_text_model_says_nothing_of_images(tokenizer, tmp_path):
    messages = [parts(["a.png"], "What?")]
    tokenizer.save_pretrained(tmp_path / "images")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "images")
    assert loaded.num_image_tokens == 3
    assert loaded.apply_chat_template(messages)["input_ids"] == tokenizer.apply_chat_template(messages)["input_ids"]
    load_tokenizer(str(QUICKSTART)).save_pretrained(tmp_path / "text")
    assert "image" not in (tmp_path / "text" / "tokenizer_config.json").read_text()
    assert (tmp_path / "text" / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_a_text_model_refuses_images():
    with pytest.raises(ConversationError, match=r"there is an image, but the model reads text only\. Set vision_model"):
        load_tokenizer(str(QUICKSTART)).render_conversation({"messages": [ask("a.png")]})


IN_SYSTEM = {"role": "system", "content": [{"type": "image", "url": "a.png"}]}
IN_ANSWER = {"role": "assistant", "content": [{"type": "image", "url": "a.png"}]}
PYTHON = {"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "python", "text": "1"}]}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([ask("https://example.com/a.png")], "part 0 is an image at https://example.com/a.png, which would be fetched again in"),
        ([ask("file:///a.png")], "Download it, and give its path or a data URL"),
        ([ask("data:text/plain;base64,aGk=")], "expected data:image/...;base64,... or a path"),
        ([ask(None)], "part 0 is an image with url of None (or missing), expected a path or a data URL"),
        ([IN_SYSTEM, ask("a.png")], "(system) has content of type list, expected a string. Images belong in user messages."),
        ([ask("a.png"), IN_ANSWER], "has type 'image', expected one of text, python, python_output. Images belong in user messages."),
        ([PYTHON], "part 1 has type 'python', expected one of text, image"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "(user) has content of type list, expected a string"),
    ],
)
def test_what_is_no_image_message_says_why(messages, problem):
    with pytest.raises(ConversationError) as caught:
        check_conversation({"messages": messages})
    assert problem in str(caught.value)


def test_images_are_read_from_paths_and_data_urls(tmp_path):
    path = save_square(tmp_path / "a.png", "red")
    for image in (read_image(path), read_image(data_url(path))):
        assert (image.mode, image.size, image.getpixel((6, 6))) == ("RGB", (16, 16), COLOURS["red"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"there is no image .*a\.png\. Correct the path"),
        (b"no image", r"the image .*a\.png cannot be read: it is damaged or no image"),
        ("cut", r"the image .*a\.png cannot be read: it is damaged or no image"),
    ],
)
def test_an_image_that_cannot_be_read_says_why(tmp_path, content, problem):
    path = tmp_path / "a.png"
    if content == "cut":
        save_square(path, "red")
        content = path.read_bytes()[:60]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConversationError, match=problem):
        read_image(str(path))


def test_a_data_url_that_holds_no_image_is_not_shown_whole():
    with pytest.raises(ConversationError, match=r"^the image in a data URL cannot be read: it is damaged or no image"):
        read_image("data:image/png;base64," + "A" * 1000)


def test_without_pillow_reading_names_the_extra(monkeypatch):
    monkeypatch.setattr("chatsft.model.images.is_vision_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'chatsft\[vision\]'"):
        read_image("a.png")


def test_a_processor_gives_pixels_in_order_and_none_for_text(tokenizer, tmp_path):
    processor = load_processor(tokenizer, save_encoder(tmp_path))
    urls = [save_square(tmp_path / f"{colour}.png", colour) for colour in COLOURS]
    single = [processor.apply_chat_template([ask(url)], tokenize=True, return_tensors="pt")["pixel_values"] for url in urls]
    batch = processor.apply_chat_template([[ask(*urls[:2])], [ask(urls[2])]], tokenize=True, padding=True, return_tensors="pt")
    assert batch["pixel_values"].equal(torch.cat(single[:3]))
    assert "pixel_values" not in processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=True)
    assert processor.apply_chat_template([ask(urls[0])]) == tokenizer.apply_chat_template([ask(urls[0])], tokenize=False)
    assert isinstance(processor, GPTProcessor)
