"""A text model learns to read images by a recipe: to well above chance on pictures it never saw, and the same however it is cut."""

import io
import json
import random
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from chatsft import serve
from chatsft.chat import main as chat
from chatsft.convert import convert_to_nanochat
from chatsft.dpo import main as dpo
from chatsft.inspection.token_picture import draw_tokens
from chatsft.model.loading import load_model_and_tokenizer
from chatsft.model.vision import load_processor
from chatsft.optim.groups import parameter_groups
from chatsft.preview import main as preview
from chatsft.recipe import load_recipe
from chatsft.train import main, train
from chatsft.trainer import ChatTrainer
from tests.clean_environment import make_clean_environment, run_clean
from tests.tiny_runs import ShardedTrainer
from tests.vision_models import COLOURS, QUICKSTART, answer, ask, data_url, save_encoder, save_square, save_text_model

QUESTION = "What colour is the square?"


def write_lines(path: Path, chats: list[list[dict]]) -> None:
    path.write_text("".join(f"{json.dumps({'messages': messages})}\n" for messages in chats))


def draw_squares(folder: Path, split: str, num: int) -> list[list[dict]]:
    """Draw squares of four colours, anywhere and of any size, and ask for their colour."""
    draw, chats = random.Random(split), []
    for index in range(num):
        colour = draw.choice(list(COLOURS))
        save_square(folder / f"{split}{index}.png", colour, left=draw.randrange(8), size=draw.randrange(4, 9))
        chats.append([ask(f"{split}{index}.png", text=QUESTION), answer(f"It is {colour}.")])
    write_lines(folder / f"{split}.jsonl", chats)
    return chats


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An encoder, a text model of each year, pictures, and a recipe that trains on conversations with none, one and two of them."""
    folder = tmp_path_factory.mktemp("images")
    save_encoder(folder / "encoder")
    save_text_model(folder / "base_2025", 2025)
    save_text_model(folder / "base_2026", 2026)
    urls = [save_square(folder / f"{colour}.png", colour) for colour in COLOURS]
    text = [{"role": "user", "content": "Hi!"}, answer("Hello.")]
    one = [[ask(url), answer(f"It is {colour}.")] for url, colour in zip(urls, COLOURS, strict=True)]
    two = [ask(urls[0], data_url(urls[1]), text="Which is red?"), answer("The first."), ask(urls[2], text="This?"), answer("No.")]
    write_lines(folder / "mixed.jsonl", [text, one[0], two, text, one[1], one[2], text, text, *one, *[text] * 4])
    settings = {
        "model_name_or_path": "base_2026",
        "vision_model": "encoder",
        "train_mixture": [{"path": "mixed.jsonl"}],
        "mixture_order": "sequence",
        "target_examples_per_step": 4,
        "per_device_train_batch_size": 1,
        "max_length": 128,
        "optimizer": "muon_2026",
        "muon_precision": "float32",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder


def run(folder: Path, output: Path, *overrides: str):
    return train(load_recipe(folder / "recipe.yaml", [f"output_dir={output}", *overrides]))


def losses(trainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    """Train on 240 squares, five times over, from random weights."""
    output = tmp_path_factory.mktemp("trained")
    base = save_text_model(folder / "untrained", hidden_size=64, std=0.1)
    draw_squares(folder, "train", 240)
    data = ["train_mixture=[{path: train.jsonl}]", "num_train_epochs=5"]
    batches = ["packing=false", "target_examples_per_step=8", "per_device_train_batch_size=8"]
    rates = ["embedding_lr=0.02", "unembedding_lr=0.002", "vision_lr=0.01"]
    run(folder, output, f"model_name_or_path={base}", "logging_steps=50", *data, *batches, *rates)
    return output


def test_it_names_the_colour_of_squares_that_it_never_saw(folder, trained):
    chats = draw_squares(folder, "test", 60)
    model, tokenizer = load_model_and_tokenizer(str(trained))
    processor = load_processor(tokenizer, str(trained))
    questions = [[ask(str(folder / question["content"][0]["url"]), text=QUESTION)] for question, _ in chats]
    inputs = processor.apply_chat_template(questions, add_generation_prompt=True, tokenize=True, padding=True, return_tensors="pt")
    written = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(written, skip_special_tokens=True)
    accuracy = sum(given == right["content"] for given, (_, right) in zip(answers, chats, strict=True)) / len(chats)
    assert accuracy > 0.9  # chance is 0.25


def test_the_terminal_shows_images_to_the_model(folder, trained, monkeypatch, capsys):
    red, blue = str(folder / "red.png"), str(folder / "blue.png")
    assert chat([str(trained), "--image", red, "--prompt", QUESTION, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "It is red.\n"
    lines = ["/image nowhere.png", f"/image {blue}", QUESTION, "/reset", f"/image {red}", QUESTION]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert chat([str(trained), "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("(Ctrl-D does too)\n")[1].replace("> ", "") == "It is blue.\nIt is red.\n\n"
    said = ["there is no image nowhere.png.", "The next message shows it.", "The conversation is forgotten.", "The next message shows it."]
    assert [line.startswith(start) for line, start in zip(captured.err.splitlines(), said, strict=True)] == [True] * 4


def test_a_text_model_is_shown_no_images(folder, capsys):
    assert chat([str(folder / "base_2025"), "--image", str(folder / "red.png"), "--prompt", "What?"]) == 2
    assert "base_2025 reads text only. Talk to a model that was trained with vision_model." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        chat([str(folder / "base_2025"), "--web", "--image", "a.png"])


@pytest.mark.parametrize("year", [pytest.param(2025, marks=pytest.mark.slow), 2026])
def test_packed_or_padded_and_however_accumulated_the_losses_are_the_same(folder, tmp_path, year):
    base = f"model_name_or_path={folder / f'base_{year}'}"
    ways = [
        ("packing=true",),
        ("packing=true", "max_length=64", "per_device_train_batch_size=2"),
        ("packing=false",),
        ("packing=false", "per_device_train_batch_size=4"),
    ]
    runs = [losses(run(folder, tmp_path / str(index), base, f"optimizer=muon_{year}", *way)) for index, way in enumerate(ways)]
    assert len(runs[0]) == 4
    for other in runs[1:]:
        assert other == pytest.approx(runs[0], rel=2e-5)


VALIDATED = ("eval_mixture=[{path: mixed.jsonl, stop: 4}]", "per_device_eval_batch_size=1", "eval_on_start=true", "eval_strategy=no")


def every_loss(trainer: ChatTrainer) -> list[float]:
    return losses(trainer) + [log["eval_token_loss"] for log in trainer.state.log_history if "eval_token_loss" in log]


def train_sharded(folder: Path, output: Path, sharding: str) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with mock.patch("chatsft.train.ChatTrainer", ShardedTrainer if sharding == "fsdp2" else ChatTrainer):
        return every_loss(run(folder, output, "packing=false", *VALIDATED))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_of_which_one_has_no_image_train_as_one(two_processes, folder, tmp_path, sharding):
    alone = every_loss(run(folder, tmp_path / "alone", "packing=false", *VALIDATED))
    for together in two_processes.run(train_sharded, folder, tmp_path / "together", sharding):
        assert together == pytest.approx(alone, rel=2e-5)


def test_the_validation_loss_is_the_training_loss_of_the_same_rows(folder, tmp_path):
    evaluate = ["eval_mixture=[{path: mixed.jsonl, stop: 4}]", "per_device_eval_batch_size=4", "eval_on_start=true", "max_steps=1"]
    for packing in ("true", "false"):
        trainer = run(folder, tmp_path / packing, *evaluate, f"packing={packing}", "eval_strategy=no")
        evaluated = next(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
        assert losses(trainer) == pytest.approx([evaluated], rel=1e-5)


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(folder, tmp_path):
    whole = run(folder, tmp_path / "whole")
    run(folder, tmp_path / "cut", "save_strategy=steps", "save_steps=2")
    again = run(folder, tmp_path / "cut", f"resume_from_checkpoint={tmp_path / 'cut' / 'checkpoint-2'}")
    assert losses(again)[-2:] == losses(whole)[-2:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_the_encoder_stays_and_a_saved_model_is_trained_further_without_vision_model(folder, tmp_path):
    first = run(folder, tmp_path / "first", "max_steps=2")
    encoder = {name: tensor.clone() for name, tensor in first.model.model.vision_tower.state_dict().items()}
    second = run(folder, tmp_path / "second", f"model_name_or_path={tmp_path / 'first'}", "vision_model=null", "max_steps=2")
    for trainer in (first, second):
        assert all(torch.equal(tensor, encoder[name]) for name, tensor in trainer.model.model.vision_tower.state_dict().items())
    assert not torch.equal(first.model.model.projector.linear_1.weight, second.model.model.projector.linear_1.weight)
    assert [group["name"] for group in second.optimizer.param_groups].count("vision") == 1
    with pytest.raises(ValueError, match="reads images already"):
        run(folder, tmp_path / "third", f"model_name_or_path={tmp_path / 'first'}")


def test_projector_and_encoder_step_by_adamw_at_a_rate_of_their_own(trained):
    model, _ = load_model_and_tokenizer(str(trained))
    rates = {"matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.008, "scalar_lr": 0.5, "vision_lr": 0.002, "init_lr_frac": 0.1}
    for trained_parts in ([model.model.projector], [model.model.vision_tower, model.model.projector]):
        model.model.vision_tower.requires_grad_(len(trained_parts) == 2)
        expected = [id(parameter) for part in trained_parts for parameter in part.parameters()]
        for optimizer in ("muon_2025", "muon_2026", "adamw"):
            groups = {group["name"]: group for group in parameter_groups(model, optimizer=optimizer, **rates)}
            vision = groups.pop("vision")
            assert list(map(id, vision["params"])) == expected
            assert (vision["kind"], vision["lr"], vision["weight_decay"]) == ("adamw", 0.002, 0.0)
            assert {name: len(group["params"]) for name, group in groups.items()} == {"unembedding": 1, "embedding": 1, "matrices": 12}


def test_preview_shows_an_image_as_one_thing(folder, tmp_path, capsys):
    assert preview([str(folder / "recipe.yaml"), "output_dir=unused", "--num", "3"]) == 0
    shown = capsys.readouterr().out
    assert "mixed.jsonl:3, 40 tokens, 8 trained, images: red.png, a data URL, blue.png" in shown
    assert shown.count("<|image|>x4") == 4 and shown.count("<|image|>") == 4
    page = tmp_path / "preview.html"
    assert preview([str(folder / "recipe.yaml"), "output_dir=unused", "--html", str(page), "max_length=10"]) == 0
    text = page.read_text()
    assert "&lt;|image|&gt;x4" in text and 'class="part image"' in text and "images: red.png" in text


PROGRAM = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
try:
    import chatsft
    raise SystemExit("chatsft can be imported")
except ImportError:
    pass
question = [{"role": "user", "content": [{"type": "image", "url": "photo.jpg"}, {"type": "text", "text": "What colour is the square?"}]}]
processor = AutoProcessor.from_pretrained(NAME, trust_remote_code=True)
inputs = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_tensors="pt")
for kind in (AutoModelForImageTextToText, AutoModelForCausalLM):
    model = kind.from_pretrained(NAME, trust_remote_code=True)
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    print(type(model).__name__, processor.decode(written, skip_special_tokens=True))
trunk = AutoModel.from_pretrained(NAME, trust_remote_code=True)
print(type(trunk).__name__, bool(trunk(**inputs).last_hidden_state.isfinite().all()))
"""


@pytest.mark.slow
def test_it_loads_by_its_own_code_and_the_cards_example_runs(folder, trained, tmp_path):
    environment = make_clean_environment(tmp_path / "site", "pillow")
    Image.open(folder / "blue.png").save(tmp_path / "photo.jpg", quality=95)
    card = (trained / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    output = run_clean(environment, PROGRAM.replace("NAME", repr(str(trained))) + example, tmp_path, HF_HUB_OFFLINE="1")
    *lines, from_pipeline = output.splitlines()
    assert lines == ["GPTForConditionalGeneration It is blue.", "GPTForConditionalGeneration It is blue.", "GPTVisionModel True"]
    assert from_pipeline


def test_a_picture_of_the_tokens_has_an_image_as_one_too(folder, trained):
    _, tokenizer = load_model_and_tokenizer(str(trained))
    ids, mask = tokenizer.render_conversation({"messages": [ask("a.png", "b.png"), answer("Red.")]})
    assert draw_tokens(ids, mask, tokenizer).count("&lt;|image|&gt;x4") == 2


def test_what_no_other_program_can_do_with_images_is_refused_with_the_reason(folder, trained, tmp_path, capsys):
    with pytest.raises(ValueError, match="holds a model that reads images: nanochat has no place for its encoder, projector and tokens"):
        convert_to_nanochat(trained, tmp_path / "out")
    assert serve.main([str(trained)]) == 2
    assert "reads images, which this server does not take" in capsys.readouterr().err
    recipe = str(QUICKSTART.parent / "quickstart_dpo.yaml")
    for overrides, reader in (([QUICKSTART, folder / "encoder"], "vision_model"), ([trained, "null"], str(trained))):
        names = [f"{key}={value}" for key, value in zip(("model_name_or_path", "vision_model"), overrides, strict=True)]
        assert dpo([recipe, *names, f"output_dir={tmp_path}", "use_cpu=true"]) == 2
        assert f"{reader} reads images, but preferences and rewards are for models that read text only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["vision_model=nowhere"], "vision_model nowhere does not load"),
        (["vision_model=null"], "mixed.jsonl:2: there is an image, but the model reads text only. Set vision_model in the recipe"),
        (["lora_r=4"], "vision_model adds weights that lora_r knows nothing of"),
        (["load_optimizer=true"], "vision_model adds weights that load_optimizer knows nothing of"),
        (["model_name_or_path=TRAINED", "vision_model=null", "lora_r=4"], "lora_r adapts models that read text only"),
        (["train_mixture=[{path: broken.jsonl}]"], "broken.jsonl:1: there is no image"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(folder, trained, tmp_path, capsys, overrides, problem):
    write_lines(folder / "broken.jsonl", [[ask("nowhere.png"), answer("Red.")]])
    overrides = [override.replace("TRAINED", str(trained)) for override in overrides]
    assert main([str(folder / "recipe.yaml"), f"output_dir={tmp_path / 'out'}", *overrides]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_plans_with_the_encoder(folder, tmp_path, capsys):
    assert main([str(folder / "recipe.yaml"), f"output_dir={tmp_path / 'out'}", "dry_run=true"]) == 0
    assert "conversations" in capsys.readouterr().out
