"""Adapters train alone, merge and load to the same logits, and say what does not fit; on our own model and on another family."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from chatsft.arguments import RecipeError
from chatsft.convert import convert_to_hf
from chatsft.model.loading import LoadingError, load_chat_model, load_model_and_tokenizer
from chatsft.recipe import load_recipe
from chatsft.run_folder import train_and_save
from chatsft.train import main, train
from chatsft.trainer import ChatTrainer
from tests.model.oracle import FIXTURES
from tests.other_models import save_model, save_recipe

ADAPTER = {"lora_r": 4, "lora_dropout": 0.0, "matrix_lr": 0.02}
IDS = torch.tensor([[3, 14, 15, 92, 65, 35]])


def save_base(kind: str, folder: Path) -> Path:
    if kind == "llama":
        return save_model("llama", folder)
    convert_to_hf(FIXTURES / "model_v2", folder, FIXTURES / "tokenizer" / "v2_4090")
    return folder


def run(recipe: Path, output: Path, *overrides: str) -> ChatTrainer:
    return train(load_recipe(recipe, [f"output_dir={output}", *overrides]))


def losses(trainer: ChatTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


@dataclass
class Case:
    """A base and a run of an adapter on it."""

    base: Path
    recipe: Path
    out: Path
    trainer: ChatTrainer
    trained_logits: torch.Tensor


@pytest.fixture(scope="module", params=["nanochat_gpt", "llama"])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    base = save_base(request.param, folder / "base")
    recipe = save_recipe(folder, base, **ADAPTER, save_strategy="steps", save_steps=2)
    trainer = run(recipe, folder / "out")
    return Case(base, recipe, folder / "out", trainer, logits(trainer.model))


def test_only_the_adapter_changes_and_is_saved(case):
    base = dict(load_model_and_tokenizer(str(case.base))[0].named_parameters())
    trained = dict(case.trainer.model.get_base_model().named_parameters())
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in trained.items() if "lora_" not in name}
    assert kept.keys() == base.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.items())
    assert all(tensor.requires_grad == ("lora_" in name) for name, tensor in trained.items())
    assert all(tensor.any() for name, tensor in trained.items() if "lora_B" in name)
    assert (case.out / "adapter_model.safetensors").is_file()
    assert not (case.out / "model.safetensors").exists()
    assert losses(case.trainer)[-1] < losses(case.trainer)[0]


def test_an_adapter_is_stepped_by_adamw_and_by_muon_only_if_asked(case, tmp_path):
    assert {group["kind"] for group in case.trainer.optimizer.param_groups} == {"adamw"}
    asked = run(case.recipe, tmp_path, "lora_optimizer=muon_2025", "max_steps=1", "save_strategy=no")
    assert [(group["name"], group["kind"]) for group in asked.optimizer.param_groups] == [("matrices", "muon")]


def test_packing_changes_no_loss(case, tmp_path):
    padded = run(case.recipe, tmp_path, "packing=false", "per_device_train_batch_size=2", "save_strategy=no")
    assert losses(padded) == pytest.approx(losses(case.trainer), rel=1e-5)


def test_resuming_gives_the_adapter_of_a_run_straight_through(case, tmp_path):
    resumed = run(case.recipe, tmp_path, f"resume_from_checkpoint={case.out}/checkpoint-2", "save_strategy=no")
    assert losses(resumed) == losses(case.trainer)
    assert torch.equal(logits(resumed.model), case.trained_logits)


def test_loading_the_adapter_gives_the_trained_logits(case, tmp_path):
    model, _ = load_model_and_tokenizer(str(case.out))
    assert torch.allclose(logits(model), case.trained_logits, atol=1e-5)
    base, _ = load_model_and_tokenizer(str(case.base))
    assert not torch.allclose(logits(base), case.trained_logits, atol=1e-2)


def test_the_example_of_the_card_talks_to_the_adapter_where_it_was_trained(case, capsys):
    card = ModelCard.load(case.out / "README.md")
    assert card.data.base_model is None  # a folder is no base for the Hub
    assert not (case.out / "checkpoint-2" / "README.md").exists()
    variables = {}
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], variables)
    assert capsys.readouterr().out.strip()
    assert torch.allclose(logits(variables["model"]), case.trained_logits, atol=1e-5)


@pytest.mark.parametrize("options", [[], ["use_dora=true"]], ids=["lora", "dora"])
def test_the_merged_model_gives_the_adapters_logits(case, tmp_path, options):
    run(case.recipe, tmp_path, "merge_adapter=true", "save_strategy=no", *options)
    merged, adapted = (load_model_and_tokenizer(str(folder))[0] for folder in (tmp_path / "merged", tmp_path))
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert type(merged) is type(AutoModelForCausalLM.from_pretrained(case.base))
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_an_adapter_of_another_base_is_refused(case, tmp_path):
    adapter, other = shutil.copytree(case.out, tmp_path / "adapter"), shutil.copytree(case.base, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    model.save_pretrained(other)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for base, message in ((other, "has other weights than the model it was trained on"), (tmp_path / "gone", "which does not load")):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
        with pytest.raises(LoadingError, match=message):
            load_model_and_tokenizer(str(adapter))


def damage(name: str, content: str):
    return lambda adapter: (adapter / name).write_text(content)


def rewrite(change):
    def damage(adapter: Path) -> None:
        weights = change(load_file(adapter / "adapter_model.safetensors"))
        save_file({name: tensor.clone() for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")

    return damage


def in_another_layer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("layers.1", "layers.7"): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage("adapter_config.json", "{"), r"adapter_config.json is damaged: it is no JSON object with base_model_name_or_path"),
        (damage("adapter_config.json", "{}"), r"adapter_config.json is damaged: it is no JSON object with base_model_name_or_path"),
        (damage("adapter_config.json", '{"base_model_name_or_path": null}'), "base_model_name_or_path is None, expected a name"),
        (damage("base_model.json", "[]"), "base_model.json is damaged: it is no JSON object with weights_fingerprint"),
        (damage("adapter_model.safetensors", "cut"), "does not load"),
        (
            rewrite(lambda weights: {name: tensor[:, :-1] for name, tensor in weights.items()}),
            "does not fit .*, which it names as its base: it belongs to another one, or is damaged",
        ),
        (rewrite(in_another_layer), r"lacks model\.layers\.1.* more weights"),
        (rewrite(lambda weights: weights | in_another_layer(weights)), r"has, beyond its base, .*layers\.7.* more weights"),
    ],
    ids=["no JSON", "no base", "null base", "record", "cut file", "other shapes", "missing layers", "more layers"],
)
def test_an_adapter_that_is_damaged_or_does_not_fit_is_refused(case, tmp_path, change, message):
    adapter = shutil.copytree(case.out, tmp_path / "adapter")
    change(adapter)
    with pytest.raises(LoadingError, match=message):
        load_model_and_tokenizer(str(adapter))


def test_an_adapter_on_the_hub_loads_as_from_its_folder_and_is_no_base_there_either(case, tmp_path, monkeypatch, capsys):
    run(case.recipe, tmp_path / "out", "save_strategy=no", "use_dora=true")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--somebody--adapter"
    shutil.copytree(tmp_path / "out", cache / "snapshots" / "0123abc")
    (cache / ".no_exist" / "0123abc").mkdir(parents=True)
    (cache / ".no_exist" / "0123abc" / "config.json").touch()  # as the cache remembers what the Hub has not
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    expected, found = (load_model_and_tokenizer(name)[0] for name in (str(tmp_path / "out"), "somebody/adapter"))
    assert torch.equal(logits(found), logits(expected))
    assert main([str(case.recipe), "model_name_or_path=somebody/adapter"]) == 2
    assert "somebody/adapter is an adapter. Train from the model in its merged/" in capsys.readouterr().err
    (cache / "snapshots" / "0123abc" / "base_model.json").write_text('{"weights_fingerprint": "another"}')
    with pytest.raises(LoadingError, match="somebody/adapter is an adapter of another base"):
        load_model_and_tokenizer("somebody/adapter")


def test_embeddings_of_chosen_tokens_and_whole_modules_train_beside_the_adapter(case, tmp_path):
    before = load_model_and_tokenizer(str(case.base))[0].get_input_embeddings().weight.detach()
    run(
        case.recipe,
        tmp_path / "tokens",
        "trainable_token_indices=[5, 9]",
        "merge_adapter=true",
        "save_strategy=no",
        "target_examples_per_step=12",
    )
    merged = load_model_and_tokenizer(str(tmp_path / "tokens" / "merged"))[0].get_input_embeddings().weight.detach()
    assert set((merged != before).any(dim=1).nonzero().flatten().tolist()) <= {5, 9}
    trainer = run(case.recipe, tmp_path / "head", "lora_modules_to_save=[lm_head]", "merge_adapter=true", "save_strategy=no")
    groups = {group["name"]: group["params"] for group in trainer.optimizer.param_groups}
    assert [tensor.shape for tensor in groups["unembedding"]] == [before.shape]
    heads = [load_model_and_tokenizer(str(path))[0].get_output_embeddings().weight for path in (case.base, tmp_path / "head" / "merged")]
    assert not torch.equal(*heads)


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers")
def test_an_adapter_on_our_own_head_is_in_the_loss(tmp_path):
    recipe = save_recipe(tmp_path, save_base("nanochat_gpt", tmp_path / "base"), **ADAPTER, lora_target_modules=["lm_head"])
    trainer = run(recipe, tmp_path / "out")
    head = trainer.model.get_base_model().lm_head
    assert head.lora_B["default"].weight.any()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_an_adapter_on_our_own_model_answers_in_chat(tmp_path):
    recipe = save_recipe(tmp_path, save_base("nanochat_gpt", tmp_path / "base"), **ADAPTER)
    trained = logits(run(recipe, tmp_path / "out").model)
    model, tokenizer = load_chat_model(str(tmp_path / "out"), device=torch.device("cpu"), dtype=torch.float32)
    assert torch.allclose(logits(model), trained, atol=1e-5)
    load_chat_model(str(tmp_path / "out"), device=torch.device("cpu"), dtype=torch.bfloat16)  # knows its base in every dtype
    prompt = torch.tensor(
        [tokenizer.render_for_completion({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]})]
    )
    assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["lora_target_modules=[q_proj, w_qkv]"],
            "lora_target_modules has w_qkv, which the model does not. It has down_proj, embed_tokens",
        ),
        (["lora_target_modules=nothing.*"], "No adapter fits"),
        (["lora_modules_to_save=[head]"], "lora_modules_to_save has head"),
        (["trainable_token_indices=['<|nope|>', 5]"], "trainable_token_indices has '<|nope|>'"),
        (["lora_r=0"], "lora_r is 0"),
        (["lora_r=null", "use_dora=true"], "lora_dropout, use_dora has no effect without an adapter. Set lora_r"),
        (["lora_r=null", "load_in_4bit=true"], "has no effect without an adapter"),
        (["load_in_4bit=true", "merge_adapter=true"], "merge_adapter cannot merge"),
        (["lora_optimizer=muon"], "lora_optimizer is 'muon'; it may be muon_2025"),
        (["lora_rr=8"], "Did you mean 'lora_r'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_ends_before_training_with_one_message(tmp_path, capsys, overrides, message):
    recipe = save_recipe(tmp_path, save_model("llama", tmp_path / "base"), **ADAPTER)
    assert main([str(recipe), *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "package"), [("lora_r=4", "peft"), ("load_in_4bit=true", "bitsandbytes")])
def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch, key, package):
    monkeypatch.setattr("chatsft.adapters.find_spec", lambda name: None if name == package else True)
    assert main([str(save_recipe(tmp_path, save_model("llama", tmp_path / "base"), **ADAPTER)), key]) == 2
    assert f"needs {package}, which is not installed: pip install" in capsys.readouterr().err


def test_four_bits_on_a_cpu_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("chatsft.adapters.find_spec", lambda name: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert main([str(save_recipe(tmp_path, save_model("llama", tmp_path / "base"), **ADAPTER)), "load_in_4bit=true"]) == 2
    assert "load_in_4bit needs a GPU" in capsys.readouterr().err


def test_an_adapter_is_no_base(case, capsys, tmp_path):
    assert main([str(save_recipe(tmp_path, case.out, **ADAPTER))]) == 2
    assert "is an adapter. Train from the model in its merged/" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["merge_adapter=true", "eval_tasks=[Arithmetic]"])
def test_what_needs_the_whole_adapter_is_refused_under_fsdp(tmp_path, setting):
    recipe = load_recipe(save_recipe(tmp_path, save_model("llama", tmp_path / "base")), ["lora_r=2", setting])
    with pytest.raises(RecipeError, match="of which FSDP gives each process a part"):
        train_and_save(SimpleNamespace(is_fsdp_enabled=True), recipe, {}, None, None)
