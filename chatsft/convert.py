"""Convert models between nanochat and transformers.

chatsft convert to-hf NANOCHAT_CKPT_DIR OUT --tokenizer TOKENIZER_DIR [--step N] [--dtype keep|float32|bfloat16]
chatsft convert to-nanochat HF_DIR OUT [--base DIR]
chatsft convert to-transformers HF_DIR OUT
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, NanoChatConfig, NanoChatForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from chatsft import __version__
from chatsft.model.conversation import CHAT_TEMPLATE
from chatsft.model.loading import set_special_tokens
from chatsft.model.nanochat_checkpoint import NanochatCheckpoint, build_model, load_nanochat_checkpoint
from chatsft.model.nanochat_export import model_fields, nanochat_tensors, save_nanochat_checkpoint, sft_meta
from chatsft.model.nanochat_tokenizer import build_tokenizer, load_nanochat_tokenizer, save_nanochat_tokenizer
from chatsft.model.saved_model import SavedModel, load_config, read_json, read_saved_model
from chatsft.model.transformers_nanochat import rename_tensors, transformers_nanochat_config
from chatsft.model.weights_index import save_weights_index
from chatsft.nanochat_origin import EXTRA_FILE, NOTHING, Origin, find_origin, save_origin
from chatsft.program import exit_code

DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class ConvertError(ValueError):
    """A conversion that is refused, with what is wrong and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = make_parser().parse_args(argv)
    disable_progress_bar()
    return exit_code(lambda: convert(arguments))


def convert(arguments: argparse.Namespace) -> None:
    arguments.run(arguments)
    print(f"Wrote {arguments.out}")


def convert_to_hf(
    checkpoint_folder: str | Path,
    output_folder: str | Path,
    tokenizer_folder: str | Path,
    step: int | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a nanochat checkpoint and its tokenizer as a save_pretrained folder.

    Args:
        output_folder: must be absent or empty; it appears complete or not at all.
        tokenizer_folder: nanochat's folder with tokenizer.pkl.
        step: the last one in the folder when None.
        dtype: of the weights written; None keeps the stored one, or float32 where nanochat stored several.

    Raises:
        ValueError: on input that is damaged, foreign or does not fit together; nothing is written then.
    """
    output_folder = Path(output_folder)
    _check_free(output_folder)
    checkpoint = load_nanochat_checkpoint(checkpoint_folder, step)
    tokenizer = load_nanochat_tokenizer(tokenizer_folder)
    _check_vocabulary(checkpoint, checkpoint_folder, tokenizer, tokenizer_folder)
    model = build_model(checkpoint, dtype or common_dtype(checkpoint.state_dict))
    set_special_tokens(model, tokenizer)
    with _complete_or_absent(output_folder) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        dtypes = {name: tensor.dtype for name, tensor in checkpoint.state_dict.items()}
        save_origin(Origin(checkpoint.padding, dtypes, checkpoint.meta, checkpoint.step), folder)


def common_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype all tensors share, else float32, which holds what nanochat stores without loss.

    nanochat trains float32 matrices beside bfloat16 embeddings.

    >>> common_dtype({"lm_head": torch.zeros(2), "wte": torch.zeros(2, dtype=torch.bfloat16)})
    torch.float32
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def convert_to_nanochat(model_folder: str | Path, output_folder: str | Path, base_folder: str | Path | None = None) -> None:
    """Write a save_pretrained folder as a nanochat checkpoint with its tokenizer.

    What to-hf read comes back bit by bit as long as nothing was trained. A model that was trained (trainer_state.json is beside
    it) keeps nanochat's dtypes and padding rows and gets the meta that nanochat's own fine-tuning writes.

    Args:
        model_folder: of this package's model or of transformers' NanoChat.
        output_folder: must be absent or empty; it appears complete or not at all.
        base_folder: where nanochat's dtypes, padding rows and meta are when they are not beside the model: the converted model or
            the nanochat checkpoint that training began with.

    Raises:
        ValueError: on input that is damaged, foreign or cannot be a nanochat model; nothing is written then.
    """
    model_folder, output_folder = Path(model_folder), Path(output_folder)
    _check_free(output_folder)
    model = read_saved_model(model_folder)
    origin = read_origin(Path(base_folder or model_folder), required=base_folder is not None)
    _check_origin(origin, model, base_folder or model_folder / EXTRA_FILE)
    fields = model_fields(model.config, origin.meta and origin.meta["model_config"])
    state_file = model_folder / "trainer_state.json"
    if state_file.is_file() or base_folder is not None:
        meta = _trained_meta(fields, state_file)
        step = meta["step"]
    else:
        step, meta = origin.step, {**(origin.meta or {"step": origin.step}), "model_config": fields}
    tensors = nanochat_tensors(model.config, model.state_dict, origin.dtypes, origin.padding)
    with _complete_or_absent(output_folder) as folder:
        save_nanochat_checkpoint(folder, tensors, meta, step)
        save_nanochat_tokenizer(model.encoding, folder / "tokenizer", counts_raw_bytes=model.config.residual_scaling)


def convert_to_transformers(model_folder: str | Path, output_folder: str | Path) -> None:
    """Write a save_pretrained folder as transformers' own NanoChat, which loads where this package is not installed.

    Raises:
        ValueError: on input that is damaged, and on a model with features that NanoChat lacks; nothing is written then.
    """
    model_folder, output_folder = Path(model_folder), Path(output_folder)
    _check_free(output_folder)
    if isinstance(load_config(model_folder), NanoChatConfig):
        raise ConvertError(f"{model_folder} is transformers' NanoChat already.")
    source = read_saved_model(model_folder)
    config = transformers_nanochat_config(source.config)
    template = model_folder / "chat_template.jinja"
    template = template.read_text() if template.is_file() else CHAT_TEMPLATE
    tokenizer = build_tokenizer(source.encoding, PreTrainedTokenizerFast, template)
    with torch.device("meta"):
        model = NanoChatForCausalLM(config)
    dtype = common_dtype(source.state_dict)
    tensors = {name: tensor.to(dtype) for name, tensor in source.state_dict.items()}
    model.load_state_dict(rename_tensors(tensors, to_ours=False), strict=True, assign=True)
    if (model_folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(model_folder)
    set_special_tokens(model, tokenizer)
    with _complete_or_absent(output_folder) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if (model_folder / EXTRA_FILE).is_file():
            shutil.copyfile(model_folder / EXTRA_FILE, folder / EXTRA_FILE)
            save_weights_index(folder)


def read_origin(folder: Path, required: bool = False) -> Origin:
    """Read what nanochat kept beside the weights: from the extra file of a converted model, or off a nanochat checkpoint."""
    origin = find_origin(folder)
    if origin is None and required:
        raise ConvertError(f"{folder} holds neither {EXTRA_FILE} (a converted model) nor model_<step>.pt (a nanochat checkpoint).")
    return origin or NOTHING


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chatsft convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    to_hf = commands.add_parser("to-hf", help="write a nanochat checkpoint as a transformers folder")
    to_hf.add_argument("checkpoint", type=Path, metavar="NANOCHAT_CKPT_DIR", help="folder with model_<step>.pt and meta_<step>.json")
    to_hf.add_argument("out", type=Path, metavar="OUT", help="folder to write; absent or empty")
    to_hf.add_argument("--tokenizer", type=Path, required=True, metavar="TOKENIZER_DIR", help="folder with nanochat's tokenizer.pkl")
    to_hf.add_argument("--step", type=int, metavar="N", help="training step (default: the last)")
    to_hf.add_argument("--dtype", choices=DTYPES, default="keep", help="of the weights; keep: as stored, float32 where dtypes differ")
    to_hf.set_defaults(run=lambda a: convert_to_hf(a.checkpoint, a.out, a.tokenizer, a.step, DTYPES[a.dtype]))
    to_nanochat = commands.add_parser("to-nanochat", help="write a saved model as a nanochat checkpoint with its tokenizer")
    to_nanochat.add_argument("model", type=Path, metavar="HF_DIR", help="folder that save_pretrained or training wrote")
    to_nanochat.add_argument("out", type=Path, metavar="OUT", help="folder to write; absent or empty")
    to_nanochat.add_argument("--base", type=Path, metavar="DIR", help=f"where training began, if {EXTRA_FILE} is not in HF_DIR")
    to_nanochat.set_defaults(run=lambda a: convert_to_nanochat(a.model, a.out, a.base))
    to_transformers = commands.add_parser("to-transformers", help="write a saved 2025 model as transformers' own NanoChat")
    to_transformers.add_argument("model", type=Path, metavar="HF_DIR", help="folder that save_pretrained or training wrote")
    to_transformers.add_argument("out", type=Path, metavar="OUT", help="folder to write; absent or empty")
    to_transformers.set_defaults(run=lambda a: convert_to_transformers(a.model, a.out))
    return parser


def _check_free(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise ConvertError(f"{folder} exists and is not an empty folder. Name a new folder, or remove this one first.")


def _check_vocabulary(
    checkpoint: NanochatCheckpoint, checkpoint_folder: str | Path, tokenizer: PreTrainedTokenizerBase, tokenizer_folder: str | Path
) -> None:
    if len(tokenizer) != checkpoint.config.vocab_size:
        raise ConvertError(
            f"the tokenizer in {tokenizer_folder} has {len(tokenizer)} tokens, but the model in {checkpoint_folder} has a vocabulary of "
            f"{checkpoint.config.vocab_size}. Pass the tokenizer the model was trained with."
        )


def _check_origin(origin: Origin, model: SavedModel, place: str | Path) -> None:
    """Require that what nanochat kept is of a model of these sizes."""
    if origin.meta is None:
        return
    config, theirs = model.config, origin.meta["model_config"]
    sizes = {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_kv_head": config.num_key_value_heads,
        "n_embd": config.hidden_size,
    }
    differing = [f"{name} is {theirs.get(name)} there and {size} here" for name, size in sizes.items() if theirs.get(name) != size]
    if origin.dtypes.keys() != model.state_dict.keys():
        differing.append("its tensors are not those of this model")
    if differing:
        raise ConvertError(f"{place} belongs to another model: {', '.join(differing)}. Pass --base with the folder training began with.")


def _trained_meta(fields: dict, state_file: Path) -> dict:
    """Return the meta of a fine-tuned model, with the figures that Trainer left in trainer_state.json."""
    state = read_json(state_file)
    if state is None:
        state = {"log_history": [], "global_step": 0}
    if not isinstance(state.get("log_history"), list) or type(state.get("global_step")) is not int:
        raise ConvertError(f"{state_file} has no global_step or log_history, so Trainer did not write it. Remove it or copy it again.")
    logged = {"eval_loss": "val_loss", "eval_bpb": "val_bpb"}
    evaluation = {ours: log[name] for log in state["log_history"] for name, ours in logged.items() if name in log}  # the last stays
    settings = {"num_iterations": "max_steps", "device_batch_size": "train_batch_size", "eval_every": "eval_steps"}
    settings = {name: state[key] for name, key in settings.items() if key in state}
    user_config = {"run": f"chatsft {__version__}", "max_seq_len": fields["sequence_len"], **settings}
    return sft_meta(fields, state["global_step"], evaluation, user_config)


@contextmanager
def _complete_or_absent(output_folder: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes the output folder when all went well, and vanishes otherwise."""
    output_folder = output_folder.resolve()
    output_folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_folder.parent, prefix=f".{output_folder.name}-") as temporary:
        folder = Path(temporary) / output_folder.name
        folder.mkdir()
        yield folder
        folder.replace(output_folder)


if __name__ == "__main__":
    sys.exit(main())
