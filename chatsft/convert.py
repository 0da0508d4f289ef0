"""Convert models between nanochat and transformers.

python -m chatsft.convert to-hf NANOCHAT_CKPT_DIR OUT --tokenizer TOKENIZER_DIR [--step N] [--dtype keep|float32|bfloat16]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from chatsft.model.loading import set_special_tokens
from chatsft.model.nanochat_checkpoint import NanochatCheckpoint, build_model, load_nanochat_checkpoint
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer

EXTRA_FILE = "nanochat_extra.safetensors"
"""What nanochat keeps and the model has no place for: padding rows, original dtypes, the meta file, the step."""

DTYPES = {"keep": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class ConvertError(ValueError):
    """A conversion that is refused, with what is wrong and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 when the model was written, 2 when the input was refused."""
    arguments = _parser().parse_args(argv)
    try:
        convert_to_hf(arguments.checkpoint, arguments.out, arguments.tokenizer, arguments.step, DTYPES[arguments.dtype])
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"Wrote {arguments.out}")
    return 0


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
        _save_extra(checkpoint, folder / EXTRA_FILE)


def common_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype all tensors share, else float32, which holds what nanochat stores without loss.

    nanochat trains float32 matrices beside bfloat16 embeddings.

    >>> common_dtype({"lm_head": torch.zeros(2), "wte": torch.zeros(2, dtype=torch.bfloat16)})
    torch.float32
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chatsft.convert", description="Convert models between nanochat and transformers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    to_hf = commands.add_parser("to-hf", help="write a nanochat checkpoint as a transformers folder")
    to_hf.add_argument("checkpoint", type=Path, metavar="NANOCHAT_CKPT_DIR", help="folder with model_<step>.pt and meta_<step>.json")
    to_hf.add_argument("out", type=Path, metavar="OUT", help="folder to write; absent or empty")
    to_hf.add_argument("--tokenizer", type=Path, required=True, metavar="TOKENIZER_DIR", help="folder with nanochat's tokenizer.pkl")
    to_hf.add_argument("--step", type=int, metavar="N", help="training step (default: the last)")
    to_hf.add_argument("--dtype", choices=DTYPES, default="keep", help="of the weights; keep: as stored, float32 where dtypes differ")
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


def _save_extra(checkpoint: NanochatCheckpoint, path: Path) -> None:
    """Keep beside the weights what restores nanochat's files exactly; from_pretrained never reads it."""
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in checkpoint.state_dict.items()}
    metadata = {"format": "pt", "step": str(checkpoint.step), "meta": json.dumps(checkpoint.meta), "dtypes": json.dumps(dtypes)}
    save_file(checkpoint.padding, path, metadata=metadata)


if __name__ == "__main__":
    sys.exit(main())
