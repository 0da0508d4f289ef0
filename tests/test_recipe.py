"""Recipes read as written, and what cannot be meant is refused by name."""

import re
from pathlib import Path

import pytest

from chatsft import dpo, grpo
from chatsft.arguments import RecipeError
from chatsft.recipe import ARGUMENTS, load_recipe, parse_overrides
from tests.model.oracle import FIXTURES, load_json

RECIPES = Path(__file__).parent.parent / "recipes"
MINIMAL = "model_name_or_path: base\ntrain_mixture: [{path: a.jsonl}]\ntarget_examples_per_step: 4\n"


def write(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(recipe):
    program = re.search(r"-m chatsft.(\w+) recipes/" + recipe.name, recipe.read_text())[1]
    loaded = load_recipe(recipe, ["bf16=false"], {"train": ARGUMENTS, "grpo": grpo.ARGUMENTS, "dpo": dpo.ARGUMENTS}[program])
    assert loaded.data.train_mixture
    assert loaded.training.max_grad_norm == 0


def test_the_recipe_of_2026_has_the_settings_nanochat_ran_with():
    ran = load_json(FIXTURES / "train_v2" / "trajectory_main_fp32.json.gz")["resolved_args"]
    recipe = load_recipe(RECIPES / "sft_2026.yaml", ["bf16=false"])
    for name in ("matrix_lr", "embedding_lr", "unembedding_lr", "init_lr_frac", "warmdown_ratio", "final_lr_frac"):
        assert getattr(recipe.training, name) == ran[name], name
    assert recipe.training.eval_max_problems == {"generative": ran["chatcore_max_sample"]}
    repeats = {entry["task"]: entry.get("repeat") for entry in recipe.data.train_mixture}
    assert (repeats["MMLU"], repeats["GSM8K"]) == (ran["mmlu_epochs"], ran["gsm8k_epochs"])


def test_overrides_are_yaml_and_win(tmp_path):
    recipe = load_recipe(write(tmp_path), ["matrix_lr=2e-5", "--packing", "false", "train_mixture=[{path: b.jsonl}]", "--max_steps=7"])
    assert recipe.training.matrix_lr == 2e-5
    assert recipe.data.packing is False
    assert recipe.data.train_mixture == [{"path": "b.jsonl"}]
    assert recipe.training.max_steps == 7
    assert parse_overrides(["--bf16", "seed=3"]) == {"bf16": True, "seed": 3}


def test_weights_are_shared_out_where_the_launcher_or_the_recipe_says_so(tmp_path, monkeypatch):
    args = load_recipe(write(tmp_path), ["use_cpu=true"]).training
    assert not args.is_sharded
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert args.is_sharded


def test_a_number_in_exponent_form_is_a_number(tmp_path):
    assert load_recipe(write(tmp_path, MINIMAL + "matrix_lr: 2e-5\nembedding_lr: 1e2\n")).training.matrix_lr == 2e-5


def test_no_is_a_word_and_true_is_not(tmp_path):
    recipe = load_recipe(write(tmp_path, MINIMAL + "eval_strategy: no\nuse_cpu: true\n"))
    assert recipe.training.eval_strategy == "no"
    assert recipe.training.use_cpu is True


def test_a_model_beside_the_recipe_is_found(tmp_path):
    (tmp_path / "base").mkdir()
    assert load_recipe(write(tmp_path)).model.model_name_or_path == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "matrix_rl: 0.1\n", "unknown key 'matrix_rl'. Did you mean 'matrix_lr'"),
        (MINIMAL + "learning_rate: 0.1\n", "learning_rate has no effect here. Use matrix_lr"),
        (MINIMAL + "max_length: long\n", "max_length is 'long', but it must be a whole number"),
        (MINIMAL + "max_length: 0\n", "max_length is 0"),
        (MINIMAL + "packing: false\ntorch_compile: true\n", "torch_compile needs rows of one length. Set packing: true"),
        (MINIMAL + "packing: 3\n", "packing is 3, but it must be true or false"),
        (MINIMAL + "optimizer: muon\n", "optimizer is 'muon'; it may be muon_2025"),
        (MINIMAL + "total_batch_size: 4096\n", "either target_examples_per_step"),
        (MINIMAL + "loss_average: micro_batch\n", "micro_batch has no meaning for packed rows"),
        (MINIMAL + "label_smoothing_factor: 0.1\n", "label_smoothing_factor is set"),
        (MINIMAL + "per_device_train_batch_size: 0\n", "per_device_train_batch_size is 0"),
        (MINIMAL + "per_device_eval_batch_size: -1\n", "per_device_eval_batch_size is -1"),
        (MINIMAL + "init_lr_frac: -1\n", "init_lr_frac is -1"),
        (MINIMAL + "warmdown_ratio: 2\n", "warmdown_ratio is 2.0; it is a share of the updates, from 0 to 1"),
        (MINIMAL + "output_dir: ''\n", "output_dir is ''. Name a folder"),
        (MINIMAL + "report_to: neptune\n", "report_to has neptune, which is not installed here. Install it, or leave it out"),
        (MINIMAL + "eval_strategy: steps\neval_steps: 5\n", "there is no eval_mixture to validate on. Add one, or set eval_strategy: no"),
        (MINIMAL + "\tseed: 1\n", r"recipe.yaml is not valid YAML: while scanning .* cannot start any token"),
        (MINIMAL + "seed: 1\nseed: 2\n", "'seed' appears twice"),
        ("train_mixture: []\ntarget_examples_per_step: 4\n", "lacks model_name_or_path"),
        ("- a\n", "holds no settings"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize("word", ["matrix_lr", "=3", "--a-b=3"])
def test_an_override_that_is_no_setting_is_refused(word):
    with pytest.raises(RecipeError, match="Cannot read the override"):
        parse_overrides([word])


def test_an_override_that_is_no_yaml_is_refused():
    with pytest.raises(RecipeError, match="'matrix_lr=\\[' is not valid YAML"):
        parse_overrides(["matrix_lr=["])


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_a_missing_recipe_is_named(tmp_path, name):
    with pytest.raises(RecipeError, match="There is no recipe"):
        load_recipe(tmp_path / name)


def test_a_file_in_the_way_of_output_dir_is_named_before_anything_is_loaded(tmp_path):
    recipe = write(tmp_path)
    with pytest.raises(RecipeError, match=f"output_dir is '{recipe}/run', but {recipe} is a file. Name a folder."):
        load_recipe(recipe, [f"output_dir={recipe}/run"])


def test_bf16_without_a_gpu_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(RecipeError, match="bf16 is set, but there is no GPU here"):
        load_recipe(write(tmp_path), ["bf16=true"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=muon_2026"], "optimizer is 'muon_2026', but DeepSpeed's ZeRO flattens.*Set optimizer: adamw"),
        ([], "optimizer is 'muon_2025'"),
        (["lora_r=4", "lora_optimizer=muon_2025"], "lora_optimizer is 'muon_2025'"),
    ],
)
def test_muon_under_deepspeed_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, settings, message):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path), settings)


@pytest.mark.parametrize("settings", [["optimizer=adamw"], ["lora_r=4"]])
def test_adamw_under_deepspeed_is_not(tmp_path, monkeypatch, settings):
    class Accepted(Exception):
        pass

    def build(*parts):  # in place of arguments that need DeepSpeed installed
        raise Accepted

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("chatsft.recipe._build", build)
    with pytest.raises(Accepted):
        load_recipe(write(tmp_path), settings)
