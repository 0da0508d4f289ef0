"""Adapters: LoRA, DoRA and QLoRA through peft, by recipe keys. peft is an optional extra (pip install 'chatsft[peft]')."""

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME

from chatsft.arguments import ModelArguments, RecipeError
from chatsft.model.fingerprint import weights_fingerprint
from chatsft.model.loading import BASE_RECORD, is_adapter
from chatsft.nanochat_origin import Origin, save_origin


def check_adapter_arguments(model_args: ModelArguments) -> None:
    """Refuse before anything is loaded what cannot be trained: an adapter as the base, and packages that are missing."""
    if is_adapter(model_args.model_name_or_path):
        raise RecipeError(
            f"{model_args.model_name_or_path} is an adapter. Train from the model in its merged/ (merge_adapter: true writes it), or go on "
            "with the run that made it by resume_from_checkpoint."
        )
    if model_args.lora_r is not None and find_spec("peft") is None:
        raise RecipeError("lora_r needs peft, which is not installed: pip install 'chatsft[peft]'.")
    if model_args.load_in_4bit and find_spec("bitsandbytes") is None:
        raise RecipeError("load_in_4bit needs bitsandbytes, which is not installed: pip install bitsandbytes, or set load_in_4bit: false.")
    if model_args.load_in_4bit and not torch.accelerator.is_available():
        raise RecipeError(
            "load_in_4bit needs a GPU: on a CPU bitsandbytes passes no gradient through its weights once they were evaluated."
        )


def quantization_options(model_args: ModelArguments) -> dict:
    """Return what from_pretrained takes to hold the base in four bits, as QLoRA does."""
    if not model_args.load_in_4bit:
        return {}
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": settings}


def add_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_args: ModelArguments) -> nn.Module:
    """Freeze a model and put a new adapter on it as the recipe says; the result starts with the logits of the model.

    Returns:
        A PeftModel, whose configuration names the base by its full path, so that the adapter is found from anywhere.

    Raises:
        RecipeError: on modules or tokens that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    check_modules(model, "lora_target_modules", model_args.lora_target_modules)
    check_modules(model, "lora_modules_to_save", model_args.lora_modules_to_save)
    tokens = token_indices(model_args.trainable_token_indices, tokenizer)
    trains_embeddings = bool(tokens or model_args.lora_modules_to_save)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules or "all-linear",
        modules_to_save=model_args.lora_modules_to_save,
        trainable_token_indices=tokens,
        use_dora=model_args.use_dora,
        ensure_weight_tying=trains_embeddings and bool(model.config.get_text_config().tie_word_embeddings),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"No adapter fits {model_args.model_name_or_path}: {error}") from error
    name = model_args.model_name_or_path
    adapted.peft_config["default"].base_model_name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    adapted.create_or_update_model_card = _leave_the_card
    return adapted


def _leave_the_card(folder: str) -> None:
    """Take the place of what peft does with each save: it names a folder as the base, for which the Hub refuses the card."""


def check_modules(model: nn.Module, key: str, wanted: list[str] | str | None) -> None:
    """Refuse names that no module ends in; a string is a pattern and left to peft."""
    if wanted is None or isinstance(wanted, str):
        return
    names = [name for name, _ in model.named_modules()]
    missing = [target for target in wanted if not any(name == target or name.endswith(f".{target}") for name in names)]
    if missing:
        kinds = (nn.Linear, nn.Embedding)
        known = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)})
        raise RecipeError(f"{key} has {', '.join(missing)}, which the model does not. It has {', '.join(known)}.")


def token_indices(tokens: list[int | str] | None, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Turn tokens given as text into ids."""
    if not tokens:
        return None
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in tokens if (token not in vocabulary if isinstance(token, str) else not 0 <= token < len(vocabulary))]
    if unknown:
        raise RecipeError(f"trainable_token_indices has {', '.join(map(repr, unknown))}, which the tokenizer does not have.")
    return [vocabulary[token] if isinstance(token, str) else token for token in tokens]


def base_fingerprint(model: PreTrainedModel, model_args: ModelArguments) -> str | None:
    """Return the fingerprint of a base before it gets its adapter; None in four bits, where the weights are not there to look at."""
    return None if model_args.lora_r is None or model_args.load_in_4bit else weights_fingerprint(model)


def save_base_record(folder: str | Path, fingerprint: str | None) -> None:
    """Write beside an adapter which weights it belongs to."""
    if fingerprint is not None:
        (Path(folder) / BASE_RECORD).write_text(json.dumps({"weights_fingerprint": fingerprint}) + "\n")


def save_merged(model: nn.Module, tokenizer: PreTrainedTokenizerBase, adapter_folder: str | Path, origin: Origin | None = None) -> None:
    """Merge an adapter into its base, for good, and save the whole as an ordinary model in `merged/` of the adapter's folder."""
    folder = Path(adapter_folder) / "merged"
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(adapter_folder) / TRAINER_STATE_NAME, folder)  # tells to-nanochat that it was trained, and how long
    if origin is not None:
        save_origin(origin, folder)
