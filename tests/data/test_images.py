"""Images on their way from a file to a batch: found beside it, checked, named where they are at fault, read last."""

import json
from pathlib import Path

import pytest
import torch

from chatsft.data.collator import EvaluationCollator, FlatteningCollator, ImageCollator, PaddingCollator
from chatsft.data.mixture import load_mixture
from chatsft.data.packing import ConversationRows
from chatsft.data.rendering import render_dataset
from chatsft.model.loading import load_tokenizer
from chatsft.model.processing_gpt import read_pixels
from chatsft.model.vision import load_processor
from tests.other_models import build_tokenizer
from tests.vision_models import COLOURS, QUICKSTART, answer, ask, data_url, save_encoder, save_square


@pytest.fixture
def tokenizer():
    tokenizer = load_tokenizer(str(QUICKSTART))
    tokenizer.add_image_tokens(4)
    return tokenizer


@pytest.fixture
def processor(tokenizer, tmp_path):
    return load_processor(tokenizer, save_encoder(tmp_path))


def write(folder: Path, *chats: list[dict], name: str = "chats.jsonl") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("".join(f"{json.dumps({'messages': messages})}\n" for messages in chats))
    return folder / name


def render(path: Path, tokenizer, max_length: int = 256, **options):
    mixture = load_mixture([{"path": str(path)}], order="sequence", **options)
    return render_dataset(mixture, tokenizer, max_length, **options)


def test_paths_count_from_the_file_that_names_them_and_become_a_column(tokenizer, tmp_path):
    red, green = (save_square(tmp_path / f"{colour}.png", colour) for colour in ("red", "green"))
    chats = [[ask("../red.png", data_url(green)), answer("Red.")], [{"role": "user", "content": "Hi"}, answer("Hello.")]]
    rendered = render(write(tmp_path / "data", *chats), tokenizer)
    assert rendered["images"][:] == [[red, data_url(green)], []]
    assert "images" not in render(write(tmp_path / "data", chats[1], name="text.jsonl"), load_tokenizer(str(QUICKSTART))).column_names


def test_every_image_at_fault_is_named_with_its_line_in_one_pass(tokenizer, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    save_square(tmp_path / "red.png", "red")
    chats = [[ask(url), answer("Red.")] for url in ("red.png", "nowhere.png", "text.png")]
    path = write(tmp_path, *chats)
    with pytest.raises(ValueError) as caught:
        render(path, tokenizer)
    assert f"{path}:2: there is no image {tmp_path}/nowhere.png. Correct the path" in str(caught.value)
    assert f"{path}:3: the image {tmp_path}/text.png cannot be read" in str(caught.value)
    assert len(render(path, tokenizer, on_bad_row="skip")) == 1


def test_addresses_are_refused_where_the_file_is_read(tmp_path):
    path = write(tmp_path, [ask("http://example.com/a.png"), answer("Red.")])
    with pytest.raises(ValueError, match=f"{path}:1: message 0 part 0 is an image at http://example.com/a.png, which would be fetched"):
        load_mixture([{"path": str(path)}])


def test_models_that_read_text_only_refuse_images_by_line(tmp_path):
    save_square(tmp_path / "red.png", "red")
    path = write(tmp_path, [ask("red.png"), answer("Red.")])
    with pytest.raises(ValueError, match=f"{path}:1: there is an image, but the model reads text only"):
        render(path, load_tokenizer(str(QUICKSTART)))
    with pytest.raises(ValueError, match=f"{path}:1: there is an image, and images are for nanochat models only"):
        render(path, build_tokenizer())


def test_a_cut_conversation_keeps_the_images_that_are_left(tokenizer, tmp_path):
    urls = [save_square(tmp_path / f"{colour}.png", colour) for colour in COLOURS]
    path = write(tmp_path, [ask(*urls[:2], text="Hi"), answer("Red.")])
    lengths = []
    for limit in (8, 13, 14, 64):  # <bos>, <user_start>, two images of six tokens, text
        rendered = render(path, tokenizer, max_length=limit)[0]
        lengths.append((len(rendered["input_ids"]), len(rendered["images"])))
    assert lengths[:3] == [(8, 1), (8, 1), (14, 2)]
    assert lengths[3][1] == 2


def rows_of(tokenizer, tmp_path, rows: list[list[int]]) -> tuple[ConversationRows, list[str]]:
    urls = [save_square(tmp_path / f"{colour}.png", colour) for colour in COLOURS]
    chats = [
        [ask(urls[0]), answer("Red.")],
        [{"role": "user", "content": "Hi"}, answer("Hello.")],
        [ask(urls[2], urls[1]), answer("Both.")],
    ]
    return ConversationRows(render(write(tmp_path, *chats), tokenizer), rows), urls


@pytest.mark.parametrize("kind", ["packed", "evaluation", "padded"])
def test_a_batch_has_the_images_in_the_order_of_their_placeholders(tokenizer, processor, tmp_path, kind):
    collators = {"packed": FlatteningCollator(128, 0, 2, 8), "evaluation": EvaluationCollator(0), "padded": PaddingCollator(0)}
    rows, urls = rows_of(tokenizer, tmp_path, [[2], [1], [0], []] if kind == "padded" else [[2, 1], [], [0]])
    collate, batch = ImageCollator(collators[kind], processor.image_processor), [rows[index] for index in range(len(rows))]
    collated, plain = collate(batch), collators[kind](batch)
    expected = read_pixels([urls[2], urls[1], urls[0]], processor.image_processor)
    assert torch.equal(collated.pop("pixel_values"), expected)
    assert collated.keys() == plain.keys()
    placeholders = collated["input_ids"] == tokenizer.convert_tokens_to_ids("<|image|>")
    assert placeholders.sum() == 3 * 4
    assert (collated["labels"][placeholders] == -100).all()
    if kind != "evaluation":
        assert "pixel_values" not in collate([rows[1]])


def test_an_image_that_vanished_since_is_named(tokenizer, processor, tmp_path):
    rows, urls = rows_of(tokenizer, tmp_path, [[0]])
    Path(urls[0]).unlink()
    with pytest.raises(ValueError, match=r"there is no image .*red\.png"):
        ImageCollator(PaddingCollator(0), processor.image_processor)([rows[0]])
