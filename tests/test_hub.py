"""Uploading: everything arrives, loads where this package is not installed, and what would fail at the end fails at the beginning."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from transformers.dynamic_module_utils import get_relative_import_files

import chatsft
from chatsft.model import modeling_gpt, tokenization_gpt
from chatsft.model.loading import load_model_and_tokenizer
from chatsft.recipe import RecipeError, load_recipe
from chatsft.trainer import ChatTrainer
from tests.clean_environment import make_clean_environment, run_clean
from tests.hub_server import TOKEN, running_hub

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "parity.yaml"
REPOSITORY = "somebody/tiny-chat"
PUSH = ("push_to_hub=true", f"hub_model_id={REPOSITORY}", "hub_private_repo=true")
SOURCES = [module.__file__ for module in (modeling_gpt, tokenization_gpt)]
CODE = {Path(file).name for source in SOURCES for file in [source, *get_relative_import_files(source)]}
FILES = CODE | {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "curves.svg",
    "environment.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "nanochat_extra.safetensors",
    "recipe.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
}
MESSAGES = [{"role": "user", "content": "What is 12 * 7?"}]


def hub_environment(endpoint: str, cwd: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Point a process at the stand-in for the Hub."""
    settings = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    settings |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cwd / "hf_home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return settings if token is None else settings | {"HF_TOKEN": token}


def train(output: Path, environment: dict[str, str], *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "chatsft.train", str(RECIPE), f"output_dir={output}", "max_steps=2", *overrides]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory) -> Path:
    """Train two steps and push; give the folder of the model."""
    folder = tmp_path_factory.mktemp("push")
    environment = hub_environment(hub.endpoint, folder, token=None)
    run = train(folder / "model", environment, *PUSH, f"hub_token={TOKEN}", "eval_strategy=steps", "eval_steps=1")
    assert run.returncode == 0, run.stderr[-4000:]
    return folder / "model"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    return make_clean_environment(tmp_path_factory.mktemp("clean") / "site")


@pytest.fixture(scope="module")
def expected(pushed) -> dict:
    """What the pushed model computes inside this package."""
    model, tokenizer = load_model_and_tokenizer(str(pushed))
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model.eval()(ids).logits
    written = model.generate(ids, max_new_tokens=5, do_sample=False)[0].tolist()
    return {"ids": ids, "logits": logits, "written": written}


def test_the_code_that_ships_knows_nothing_of_nanochats_files():
    assert {"configuration_gpt.py", "modeling_gpt.py", "tokenization_gpt.py"} <= CODE
    assert not CODE & {"loading.py", "nanochat_checkpoint.py", "nanochat_tokenizer.py"}


def test_every_file_arrives_byte_for_byte(pushed, hub):
    arrived = hub.repositories[REPOSITORY]
    assert arrived.keys() - {".gitattributes", "training_args.bin", "trainer_state.json"} == FILES
    for path in FILES:
        assert arrived[path] == (pushed / path).read_bytes(), path
    assert hub.settings[REPOSITORY]["visibility"] == "private"


PROGRAM = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
for name in ("chatsft", "datasets", "accelerate", "trl"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
options = {"trust_remote_code": True, "dtype": torch.float32}
expected = torch.load(sys.argv[1] if len(sys.argv) > 1 else "expected.pt")
model, tokenizer = AutoModelForCausalLM.from_pretrained(NAME, **options), AutoTokenizer.from_pretrained(NAME, trust_remote_code=True)
ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")["input_ids"]
assert torch.equal(ids, expected["ids"])
with torch.no_grad():
    assert torch.equal(model.eval()(ids).logits, expected["logits"])
assert model.generate(ids, max_new_tokens=5, do_sample=False)[0].tolist() == expected["written"]
chat = pipeline("text-generation", model=NAME, **options)
parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
answers = [chat(messages, max_new_tokens=5, do_sample=False)[0]["generated_text"][-1] for messages in (MESSAGES, parts)]
assert answers[0] == answers[1], answers
assert answers[0] == {"role": "assistant", "content": tokenizer.decode(expected["written"][ids.shape[1] :], skip_special_tokens=True)}
print("done")
"""


def usage_example(folder: Path) -> str:
    example = example_of((folder / "README.md").read_text())
    assert REPOSITORY in example
    return example


def example_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_it_loads_where_only_torch_and_transformers_are(pushed, hub, environment, expected, tmp_path, place):
    torch.save(expected, tmp_path / "expected.pt")
    name = str(pushed) if place == "folder" else REPOSITORY
    offline = {"HF_HUB_OFFLINE": "1" if place == "folder" else "0", "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    program = PROGRAM.replace("NAME", repr(name)).replace("MESSAGES", repr(MESSAGES))
    output = run_clean(environment, program + usage_example(pushed) if place == "hub" else program, tmp_path, **offline)
    assert output.startswith("done\n")
    assert bool(output.removeprefix("done\n").strip()) == (place == "hub")  # what the card's example prints


def test_with_this_package_its_own_classes_load_and_nothing_is_asked(pushed, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("a question was asked"))
    assert type(AutoModelForCausalLM.from_pretrained(pushed)) is chatsft.GPTForCausalLM
    assert type(AutoTokenizer.from_pretrained(pushed)) is chatsft.GPTTokenizer


def test_the_card_tells_what_the_run_was(pushed):
    card = ModelCard.load(pushed / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert {"nanochat", "chatsft"} <= set(card.data.tags)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results.keys() == {"loss", "token_loss"}
    recipe = yaml.safe_load((pushed / "recipe.yaml").read_text())
    assert recipe["max_steps"] == 2
    assert recipe["hub_model_id"] == REPOSITORY
    assert "| conversations.jsonl | 160 |" in card.text
    assert f"| {results['loss']:.4f} |" in card.text
    assert (pushed / "curves.svg").read_text().count("<polyline") == 2


@pytest.fixture(scope="module")
def pushed_adapter(pushed, hub, tmp_path_factory) -> Path:
    """Train an adapter on the model that was pushed, and push it too; give its folder."""
    folder = tmp_path_factory.mktemp("push_adapter")
    options = (f"model_name_or_path={REPOSITORY}", "tokenizer_path=null", "lora_r=2", "use_dora=true", "merge_adapter=true")
    push = ("push_to_hub=true", "hub_model_id=somebody/tiny-adapter")
    run = train(folder / "adapter", hub_environment(hub.endpoint, folder), *options, *push)
    assert run.returncode == 0, run.stderr[-4000:]
    return folder / "adapter"


ADAPTER_PROGRAM = """
EXAMPLE
import torch
ids, expected = torch.load("expected.pt")
with torch.no_grad():
    torch.testing.assert_close(chat.model.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
"""


def test_a_pushed_adapter_loads_by_the_example_of_its_card_where_only_peft_is_besides(pushed_adapter, hub, tmp_path):
    assert "adapter_model.safetensors" in hub.repositories["somebody/tiny-adapter"]
    card = ModelCard(hub.repositories["somebody/tiny-adapter"]["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == (REPOSITORY, "peft")
    assert {"nanochat", "chatsft", "lora"} <= set(card.data.tags)
    merged, tokenizer = load_model_and_tokenizer(str(pushed_adapter / "merged"))
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.save((ids, merged.eval()(ids).logits), tmp_path / "expected.pt")
    environment = make_clean_environment(tmp_path / "site", "peft")
    program = ADAPTER_PROGRAM.replace("EXAMPLE", example_of(card.text))
    assert run_clean(environment, program, tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.endpoint, HF_HUB_DISABLE_XET="1").strip()


def test_the_merged_model_beside_an_adapter_has_a_card_of_its_own(pushed_adapter, tmp_path):
    card = ModelCard.load(pushed_adapter / "merged" / "README.md")
    assert (card.data.base_model, card.data.library_name) == (REPOSITORY, "transformers")
    assert f"pipeline('text-generation', model='{pushed_adapter}/merged', trust_remote_code=True)" in card.text


def test_the_token_stays_out_of_what_is_uploaded(pushed, hub):
    arrived = hub.repositories[REPOSITORY]
    assert "training_args.bin" in arrived
    assert [path for path, content in arrived.items() if TOKEN.encode() in content] == []


def test_a_push_during_training_brings_the_code_along(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append({path.name for path in output.iterdir()}))
    monkeypatch.setattr(ChatTrainer, "is_world_process_zero", lambda self: True)
    (output := tmp_path / "model").mkdir()
    (checkpoint := output / "checkpoint-1").mkdir()
    chatsft.GPTForCausalLM(chatsft.GPTConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        checkpoint
    )
    trainer = ChatTrainer.__new__(ChatTrainer)
    trainer.args = SimpleNamespace(output_dir=str(output))
    trainer._push_from_checkpoint(str(checkpoint))
    assert pushed[0] >= CODE - {"tokenization_gpt.py", "conversation.py"}  # these come with the tokenizer


def test_a_wrong_token_ends_the_run_before_training(tmp_path, hub):
    run = train(tmp_path / "model", hub_environment(hub.endpoint, tmp_path, token="hf_wrong"), *PUSH)
    assert run.returncode == 2
    assert "Step 0000" not in run.stdout
    assert "401" in run.stderr
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "is_offline", "token", "problem"),
    [
        (("push_to_hub=true",), False, TOKEN, "Set hub_model_id"),
        (PUSH, True, TOKEN, "HF_HUB_OFFLINE keeps this process off the Hub"),
        (PUSH, False, None, "no token to write with"),
        ((*PUSH, "lora_r=4"), False, TOKEN, "would upload an adapter of .*, a folder that nobody else has. Push that model first"),
    ],
)
def test_what_an_upload_lacks_is_said_when_the_recipe_is_read(monkeypatch, overrides, is_offline, token, problem):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr("chatsft.arguments.get_token", lambda: token)
    with pytest.raises(RecipeError, match=problem):
        load_recipe(RECIPE, overrides)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "error: somebody/repository does not load: no folder here, and no tokenizer on the Hub"),
        (["model_000650.pt", "tokenizer.pkl"], "error: somebody/repository holds nanochat's own files"),
    ],
    ids=["empty", "nanochat's own files"],
)
def test_a_repository_without_a_saved_model_is_a_clear_error(hub, tmp_path, files, message):
    hub.repositories["somebody/repository"] = dict.fromkeys(files, b"content")
    options = ("model_name_or_path=somebody/repository", "tokenizer_path=null")
    run = train(tmp_path / "model", hub_environment(hub.endpoint, tmp_path), *options)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(message)
