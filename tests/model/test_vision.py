"""A GPT that reads images: the GPT where there are none, and the same model cached or not, packed or not, saved or not."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, SiglipConfig, SiglipModel
from transformers.cache_utils import StaticCache

from chatsft.evaluation.model_copy import copy_for_evaluation
from chatsft.generation.custom_generate import decode
from chatsft.generation.tool_use import generate_completions
from chatsft.model.configuration_gpt_vision import GPTVisionConfig
from chatsft.model.loading import load_model_and_tokenizer, load_tokenizer
from chatsft.model.modeling_gpt_vision import GPTForConditionalGeneration, GPTVisionModel
from chatsft.model.processing_gpt import GPTProcessor
from chatsft.model.serving import check_engine
from chatsft.model.vision import VisionError, add_encoder, add_image_tokens, count_image_tokens, load_encoder_config, load_processor
from tests.vision_models import NUM_IMAGE_TOKENS, QUICKSTART, answer, ask, build_text_model, build_vision_model, save_encoder, save_square

GENERATIONS = [2025, 2026]
BEAMS = {"num_return_sequences": 2, "num_beams": 2}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [save_square(folder / f"{colour}.png", colour) for colour in ("red", "green", "blue")]


@pytest.fixture(scope="module", params=GENERATIONS)
def reader(request, encoder):
    """A model that reads images, its processor, and the text model it was made from."""
    return *build_vision_model(encoder, request.param), build_text_model(request.param)


def prompt(processor, *chats, **options):
    chats = [chat if isinstance(chat, list) else [chat] for chat in chats]
    return processor.apply_chat_template(
        chats,
        tokenize=True,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"},
        **options,
    )


@torch.no_grad()
def logits(model, **inputs) -> torch.Tensor:
    return model(**inputs).logits


def test_without_images_it_is_the_text_model(reader):
    model, _, text_model = reader
    ids = torch.arange(40).view(2, 20) * 97 % 4096
    assert torch.equal(logits(model, input_ids=ids)[..., :4096], logits(text_model, input_ids=ids))
    model.train(), text_model.train()
    ours, theirs = logits(model, input_ids=ids, use_cache=False), logits(text_model, input_ids=ids, use_cache=False)
    model.eval(), text_model.eval()
    assert torch.equal(ours[..., :4096], theirs)


def test_the_text_model_knows_nothing_of_images():
    text_model = build_text_model(2026)
    assert not any("vision" in name or "projector" in name for name in text_model.state_dict())
    assert not any("vision" in name or "image" in name for name in text_model.config.to_dict())
    assert text_model.trunk_class.forward is type(text_model.model).forward


def test_what_an_image_shows_changes_what_follows_and_nothing_before(reader, pictures):
    model, processor, _ = reader
    inputs = [prompt(processor, ask(url)) for url in pictures[:2]]
    assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
    red, green = (logits(model, **each)[0] for each in inputs)
    start = inputs[0]["input_ids"][0].tolist().index(processor.tokenizer.convert_tokens_to_ids("<|image|>"))
    assert torch.equal(red[:start], green[:start])
    assert (red[start:] - green[start:]).abs().amax(-1).min() > 1e-4


def test_value_embeddings_see_the_placeholders_ids_and_smear_the_images_vectors(encoder, pictures):
    model, processor = build_vision_model(encoder, 2026)
    inputs = prompt(processor, ask(pictures[0]))
    place = inputs["input_ids"][0].tolist().index(model.config.image_token_id)
    before, embeddings = logits(model, **inputs), model.model.value_embeddings["1"].weight
    assert len(embeddings) == model.config.vocab_size == 4099
    kept = embeddings.detach().clone()
    with torch.no_grad():
        embeddings[model.config.image_token_id] += 1
        changed = (logits(model, **inputs) - before)[0].abs().amax(-1) > 0
        embeddings.copy_(kept)
        model.model.embed_tokens.weight[model.config.image_token_id] += 1  # never looked up: the image stands there
        assert torch.equal(logits(model, **inputs), before)
    assert changed.tolist() == [index >= place for index in range(len(changed))]
    seen = []
    handle = model.model.smear_gate.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    logits(model, **inputs)
    handle.remove()
    embeds = model.model.embed_norm(model.model.get_image_features(inputs["pixel_values"])[0])
    torch.testing.assert_close(seen[0][0, place : place + NUM_IMAGE_TOKENS], embeds[:, : model.config.smear_gate_size])


def test_cached_decoding_computes_what_a_whole_pass_does(reader, pictures):
    model, processor, _ = reader
    inputs = prompt(processor, [ask(pictures[0]), answer("It is red."), ask(pictures[1], text="And now?")], ask(pictures[2]))
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([[7, 8], [9, 10]])], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    whole["attention_mask"][:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    expected = logits(model, **whole)
    with torch.no_grad():
        first = model(**inputs, use_cache=True)
        cache, steps = first.past_key_values, [first.logits]
        for index in (2, 1):
            stop = whole["input_ids"].shape[1] - index + 1
            ids, mask = whole["input_ids"][:, stop - 1 : stop], whole["attention_mask"][:, :stop]
            steps.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits)
    real = whole["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(steps, 1)[real], expected[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}, BEAMS])
def test_generation_of_a_padded_batch_is_that_of_each_row_alone(reader, pictures, options):
    model, processor, _ = reader
    chats = [[ask(*pictures[:2])], [ask(pictures[2], text="Which?")], [{"role": "user", "content": "Hello!"}]]
    plain = {"max_new_tokens": 5, "do_sample": False} | options
    batch = prompt(processor, *chats)
    together = model.generate(**batch, **plain)[:, batch["input_ids"].shape[1] :].tolist()
    alone = []
    for chat in chats:
        inputs = prompt(processor, chat)
        alone += model.generate(**inputs, **plain)[:, inputs["input_ids"].shape[1] :].tolist()
    pad = processor.tokenizer.pad_token_id
    assert [row + [pad] * (5 - len(row)) for row in alone] == [row + [pad] * (5 - len(row)) for row in together]
    cache = model.generate(**batch, **plain, return_dict_in_generate=True).past_key_values
    assert isinstance(cache, StaticCache) == ("cache_implementation" in options)


def test_completions_take_the_images_of_one_prompt(reader, pictures):
    model, processor, _ = reader
    inputs = prompt(processor, ask(pictures[0]))
    ids = inputs["input_ids"][0].tolist()
    [[completion]] = generate_completions(
        model, processor.tokenizer, [ids], max_new_tokens=6, pixel_values=inputs["pixel_values"], keep_end=True
    )
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
    assert completion == expected
    assert model.generate(**inputs, max_new_tokens=6, do_sample=False, custom_generate=decode)[0, len(ids) :].tolist() == expected
    with pytest.raises(ValueError, match="pixel_values belong to one prompt of at most 122 tokens, not to 2 of"):
        generate_completions(model, processor.tokenizer, [ids, ids], max_new_tokens=6, pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="hold 4 image placeholders, but the images give 0 vectors"):
        generate_completions(model, processor.tokenizer, [ids], max_new_tokens=6)


@pytest.mark.parametrize("training", [False, True])
def test_placeholders_and_images_have_to_match(encoder, pictures, training):
    model, processor = build_vision_model(encoder)
    model.train(training)
    inputs = prompt(processor, ask(*pictures[:2]))
    with pytest.raises(ValueError, match=r"hold 8 image placeholders, but the images give 4 vectors\. Pass input_ids"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:1])
    with pytest.raises(ValueError, match="hold 8 image placeholders, but the images give 0 vectors"):
        model(input_ids=inputs["input_ids"])


def test_training_without_images_gives_every_trained_parameter_a_gradient(encoder):
    model, _ = build_vision_model(encoder)
    model.train()(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None], use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.projector.parameters())
    assert not any(parameter.grad.any() for parameter in model.model.projector.parameters())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_bfloat16_and_recomputed_layers_are_near_float32(encoder, pictures):
    model, processor = build_vision_model(encoder, 2026)
    inputs = prompt(processor, ask(pictures[0]))
    expected = logits(model, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert (logits(model, **inputs) - expected).abs().max() < 0.1 * expected.abs().max()
    gradients = []
    for recomputes in (False, True):
        model.train().zero_grad()
        if recomputes:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append(model.model.projector.linear_1.weight.grad.clone())
    assert gradients[0].any() and torch.equal(*gradients)


def test_a_saved_model_is_loaded_by_every_way_there_is(encoder, pictures, tmp_path):
    model, processor = build_vision_model(encoder, 2026)
    inputs = prompt(processor, ask(pictures[0]))
    expected = logits(model, **inputs)
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    loaded, tokenizer = load_model_and_tokenizer(str(tmp_path))
    assert type(loaded) is GPTForConditionalGeneration and type(loaded.config) is GPTVisionConfig
    assert torch.equal(logits(loaded.eval(), **inputs), expected)
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(tmp_path).eval(), **inputs), expected)
    assert type(AutoModel.from_pretrained(tmp_path)) is GPTVisionModel
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is GPTProcessor
    for rendered in (prompt(again, ask(pictures[0])), prompt(load_processor(tokenizer, str(tmp_path)), ask(pictures[0]))):
        assert all(torch.equal(rendered[name], inputs[name]) for name in inputs)


def test_an_evaluation_copy_answers_text(encoder):
    model, _ = build_vision_model(encoder)
    ids = torch.arange(12)[None]
    assert torch.equal(logits(copy_for_evaluation(model, torch.float32), input_ids=ids), logits(model, input_ids=ids))


def test_the_encoder_of_a_model_of_images_and_texts_is_taken_alone(tmp_path, pictures):
    save_encoder(tmp_path)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = settings | {"image_size": 16, "patch_size": 8, "vision_use_head": False}
    both = SiglipModel(SiglipConfig(text_config=settings | {"vocab_size": 16}, vision_config=vision))
    both.save_pretrained(tmp_path)
    model, processor = build_vision_model(str(tmp_path))
    for name, tensor in both.vision_model.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name
    assert logits(model, **prompt(processor, ask(pictures[0]))).isfinite().all()


def test_an_encoder_with_a_class_token_gives_one_more():
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    assert count_image_tokens(config) == NUM_IMAGE_TOKENS + 1


def test_what_cannot_be_added_says_why(encoder, tmp_path):
    tokenizer = load_tokenizer(str(QUICKSTART))
    with pytest.raises(VisionError, match=r"vision_model .*nowhere does not load"):
        add_image_tokens(tokenizer, str(tmp_path / "nowhere"))
    with pytest.raises(VisionError, match="is no encoder that gives one vector a patch"):
        add_image_tokens(tokenizer, str(QUICKSTART))
    add_image_tokens(tokenizer, encoder)
    with pytest.raises(VisionError, match=r"reads images already\. Leave vision_model out"):
        add_image_tokens(tokenizer, encoder)
    with pytest.raises(VisionError, match="not to a SiglipVisionModel"):
        add_encoder(build_vision_model(encoder)[0].model.vision_tower, tokenizer, encoder)
    (broken := tmp_path / "encoder").mkdir()
    load_encoder_config(encoder).save_pretrained(broken)
    with pytest.raises(VisionError, match="encoder does not load"):
        add_encoder(build_text_model(), tokenizer, str(broken))
    save_encoder(tmp_path / "incomplete")
    weights = load_file(tmp_path / "incomplete" / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VisionError, match=r"incomplete lacks weights of its encoder \(1, as .*\)\. Name"):
        add_encoder(build_text_model(), tokenizer, str(tmp_path / "incomplete"))
    with pytest.raises(VisionError, match="has no image processor that loads"):
        load_processor(tokenizer, str(broken))


def test_without_pillow_the_extra_is_named(encoder, monkeypatch):
    monkeypatch.setattr("chatsft.model.vision.is_vision_available", lambda: False)
    with pytest.raises(VisionError, match=r"pip install 'chatsft\[vision\]'"):
        load_processor(load_tokenizer(str(QUICKSTART)), encoder)


def test_engines_are_told_why_they_cannot_run_it(encoder):
    model, _ = build_vision_model(encoder)
    with pytest.raises(ValueError, match=r"has vision_config, which vLLM.*images are put in place"):
        check_engine(model.config)
