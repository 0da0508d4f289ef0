"""Recipes: flat YAML plus overrides become argument dataclasses."""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import yaml

from chatsft.arguments import (
    ChatArguments,
    DataArguments,
    ModelArguments,
    RecipeError,
    RunArguments,
    check_deepspeed,
    is_launched_with,
    optimizer_key,
)

REPLACED = {
    "learning_rate": "matrix_lr, embedding_lr, unembedding_lr and scalar_lr",
    "optim": "optimizer",
    "optim_args": "optimizer",
    "optim_target_modules": "optimizer",
    "lr_scheduler_type": "warmup_steps, warmdown_ratio and final_lr_frac",
    "lr_scheduler_kwargs": "warmup_steps, warmdown_ratio and final_lr_frac",
    "adam_beta1": "optimizer: each of its groups has nanochat's own",
    "adam_beta2": "optimizer: each of its groups has nanochat's own",
    "adam_epsilon": "optimizer: it is nanochat's 1e-10",
}
"""Keys of TrainingArguments that chatsft has its own word for."""

OF_CHAT = {
    "gradient_accumulation_steps": "target_examples_per_step or total_batch_size, from which it follows",
    "enable_jit_checkpoint": "SIGTERM as it is, which always saves a checkpoint and ends the run",
}
"""The same, for supervised chat training."""

ARGUMENTS = (ModelArguments, DataArguments, ChatArguments)


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", list: "a list", dict: "key: value pairs"}
"""What a value may be, for errors."""


class Recipe(typing.NamedTuple):
    """The arguments of a run, the folder its recipe lies in, and what was set, overrides included."""

    model: ModelArguments
    data: typing.Any  # DataArguments, or what another program's recipes say of their data
    training: RunArguments
    folder: Path
    settings: dict


def load_recipe(path: str | Path, overrides: Sequence[str] = (), arguments: tuple[type, type, type] = ARGUMENTS) -> Recipe:
    """Read a recipe and apply overrides of the form key=value, --key=value or --key value.

    Args:
        arguments: the dataclasses of the model, the data and the training whose fields are the keys.

    Raises:
        RecipeError: on an unknown key (with the nearest one), a value of the wrong type, or a missing key.
    """
    settings = {**_read_yaml(Path(path)), **parse_overrides(overrides)}
    known = recipe_keys(arguments)
    replaced = REPLACED | (OF_CHAT if DataArguments in arguments else {})
    for name in settings:
        if name in replaced:
            raise RecipeError(f"{path}: {name} has no effect here. Use {replaced[name]}.")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise RecipeError(f"{path}: unknown key {name!r}." + (f" Did you mean {nearest[0]!r}?" if nearest else ""))
    if settings.get("deepspeed") or is_launched_with("DEEPSPEED"):
        key = optimizer_key(bool(settings.get("lora_r")))
        check_deepspeed(key, settings.get(key, getattr(ChatArguments, key)))
    groups = [{name: value for name, value in settings.items() if known[name] is owner} for owner in arguments]
    built = (_build(owner, group, path) for owner, group in zip(arguments, groups, strict=True))
    recipe = Recipe(*built, folder=Path(path).parent, settings=settings)
    if arguments == ARGUMENTS and recipe.data.packing and recipe.training.loss_average == "micro_batch":
        raise RecipeError(f"{path}: loss_average micro_batch has no meaning for packed rows. Set packing: false, or loss_average: token.")
    if arguments == ARGUMENTS and recipe.training.compile_layers and not recipe.data.packing:
        raise RecipeError(f"{path}: torch_compile needs rows of one length. Set packing: true, which makes them, or torch_compile: false.")
    if recipe.data.eval_mixture is None and (recipe.training.eval_strategy != "no" or recipe.training.eval_on_start):
        raise RecipeError(f"{path}: there is no eval_mixture to validate on. Add one, or set eval_strategy: no and eval_on_start: false.")
    recipe.model.model_name_or_path = _beside(recipe.folder, recipe.model.model_name_or_path)
    recipe.model.tokenizer_path = _beside(recipe.folder, recipe.model.tokenizer_path)
    recipe.model.vision_model = _beside(recipe.folder, recipe.model.vision_model)
    recipe.data.data_root = _beside(recipe.folder, recipe.data.data_root)
    if recipe.training.push_to_hub and recipe.model.lora_r is not None and Path(recipe.model.model_name_or_path).is_dir():
        raise RecipeError(
            f"{path}: push_to_hub would upload an adapter of {recipe.model.model_name_or_path}, a folder that nobody else has. Push that "
            "model first and name it by its Hub id, or set merge_adapter: true and upload merged/ afterwards (hf upload NAME FOLDER)."
        )
    return recipe


def recipe_keys(arguments: tuple[type, ...] = ARGUMENTS) -> dict[str, type]:
    """Return every key of a recipe, with the arguments it belongs to."""
    return {name: owner for owner in arguments for name in _settable(owner)}


def parse_overrides(tokens: Sequence[str]) -> dict:
    """Turn override words into settings; values are YAML.

    >>> parse_overrides(["matrix_lr=2e-5", "--packing", "false", "--bf16"])
    {'matrix_lr': 2e-05, 'packing': False, 'bf16': True}
    """
    settings, tokens = {}, list(tokens)
    while tokens:
        word = tokens.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not name.isidentifier() or not (equals or word.startswith("--")):
            raise RecipeError(f"Cannot read the override {word!r}. Write key=value or --key value.")
        if not equals:
            value = tokens.pop(0) if tokens and not tokens[0].startswith("--") and "=" not in tokens[0] else "true"
        try:
            settings[name] = yaml.load(value, Loader=RecipeLoader)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"The value of the override {word!r} is not valid YAML ({reason}). In a shell, put it in quotes.") from error
    return settings


class RecipeLoader(yaml.SafeLoader):
    """YAML in which, as in YAML 1.2, 2e-5 is a number and no is a word (eval_strategy: no), and a repeated key is an error."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {repeated!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


RecipeLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:bool"]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _beside(folder: Path, name: str | None) -> str | None:
    """Find a relative path beside the recipe; anything else is left as it is."""
    return str(folder / name) if name is not None and (folder / name).exists() else name


def _read_yaml(path: Path) -> dict:
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"There is no recipe {path}. Recipes that come with chatsft are in recipes/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} holds no settings. A recipe is a list of key: value lines.")
    return settings


def _settable(owner: type) -> list[str]:
    return [entry.name for entry in fields(owner) if entry.init]


def _build(owner: type, settings: dict, path: str | Path):
    hints = typing.get_type_hints(owner)
    settings = {name: _fit(name, value, hints[name], path) for name, value in settings.items()}
    missing = [entry.name for entry in fields(owner) if entry.init and _is_required(entry) and entry.name not in settings]
    if missing:
        raise RecipeError(f"{path} lacks {', '.join(missing)}.")
    try:
        return owner(**settings)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def _is_required(entry) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _fit(name: str, value, hint, path: str | Path):
    """Check a value against its field's type where that is plain (numbers, words, lists); whole numbers serve as fractions."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    plain = {typing.get_origin(option) or option for option in options}
    if not plain <= {int, float, str, bool, list, dict, type(None)} or type(value) in plain:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and float in plain:
        return float(value)
    wanted = " or ".join(word for kind, word in WORDS.items() if kind in plain)
    raise RecipeError(f"{path}: {name} is {value!r}, but it must be {wanted}.")
