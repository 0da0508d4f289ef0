"""nanochat checkpoints: the one place that knows nanochat's file and tensor names.

A checkpoint folder holds model_<step>.pt (tensors) and meta_<step>.json (the architecture under "model_config").
"""

import json
import pickle
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from .configuration_gpt import GPTConfig
from .modeling_gpt import GPTForCausalLM

_STEP = re.compile(r"model_(\d{6,})\.pt")

_LAYER_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "attn.ve_gate": "self_attn.value_gate",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
VOCABULARY_ROWS = ("model.embed_tokens.weight", "lm_head.weight", "model.value_embeddings.")
VOCABULARY_MULTIPLE = 64  # later generations pad the vocabulary rows up to a multiple of this
_SEQUENCE_FIELDS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")


class CheckpointError(ValueError):
    """A nanochat checkpoint that cannot be read, with what is wrong and what to do."""


class NanochatCheckpoint(NamedTuple):
    """A nanochat checkpoint in our terms.

    Args:
        config: the architecture.
        state_dict: weights under our names, in the dtypes nanochat stored, vocab_size rows.
        padding: the vocabulary rows beyond vocab_size, under our names; empty where nanochat padded none.
        meta: nanochat's meta file as it is.
        step: the training step in the file names.
    """

    config: GPTConfig
    state_dict: dict[str, torch.Tensor]
    padding: dict[str, torch.Tensor]
    meta: dict
    step: int


def is_nanochat_checkpoint(folder: str | Path) -> bool:
    """Tell whether a folder holds nanochat's model_<step>.pt files."""
    return bool(_steps(Path(folder)))


def load_nanochat_checkpoint(folder: str | Path, step: int | None = None) -> NanochatCheckpoint:
    """Read a nanochat checkpoint, the last step unless one is named; optimizer files are left aside.

    Raises:
        CheckpointError: on a missing or damaged file, and on any tensor that is unknown, missing or of another shape.
    """
    folder = Path(folder)
    step = choose_step(folder, step)
    meta = _read_meta(folder / f"meta_{step:06d}.json")
    weights_file = folder / f"model_{step:06d}.pt"
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in _read_tensors(weights_file).items()}
    config = nanochat_config(meta["model_config"], tensors, folder / f"meta_{step:06d}.json")
    _patch_old_tensors(tensors, config)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ("cos", "sin")}
    names = {name: our_name(name) for name in tensors}
    _check_tensors(names, tensors, config, weights_file)
    state_dict = {names[name]: tensor for name, tensor in tensors.items()}
    rows = config.vocab_size
    padded = [name for name, tensor in state_dict.items() if name.startswith(VOCABULARY_ROWS) and len(tensor) > rows]
    padding = {name: state_dict[name][rows:].clone() for name in padded}  # no view, which would keep the rest in memory
    state_dict.update({name: state_dict[name][:rows] for name in padded})
    return NanochatCheckpoint(config, state_dict, padding, meta, step)


def load_nanochat_model(folder: str | Path, step: int | None = None, dtype: torch.dtype = torch.float32) -> GPTForCausalLM:
    """Build the model of a nanochat checkpoint folder, all weights in one dtype, in evaluation mode as from_pretrained gives it."""
    return build_model(load_nanochat_checkpoint(folder, step), dtype)


def build_model(checkpoint: NanochatCheckpoint, dtype: torch.dtype = torch.float32) -> GPTForCausalLM:
    """Build the model of a checkpoint that was read before, all weights in one dtype, in evaluation mode."""
    with torch.device("meta"):
        model = GPTForCausalLM(checkpoint.config)
    state_dict = {name: tensor.to(dtype).contiguous() for name, tensor in checkpoint.state_dict.items()}
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval()


def our_name(name: str) -> str | None:
    """Translate nanochat's tensor name to ours; None for one that no generation of nanochat has.

    >>> our_name("transformer.h.3.attn.c_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    if match := re.fullmatch(r"transformer\.h\.(\d+)\.(\w+\.\w+)\.weight", name):
        layer = _LAYER_NAMES.get(match[2])
        return layer and f"model.layers.{match[1]}.{layer}.weight"
    if match := re.fullmatch(r"value_embeds\.(\d+)\.weight", name):
        return f"model.value_embeddings.{match[1]}.weight"
    if name in ("resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda"):
        return f"model.{name}"
    return {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}.get(name)


def nanochat_names(config: GPTConfig) -> dict[str, str]:
    """List nanochat's tensor names in the order of its state dict, each with ours.

    >>> list(nanochat_names(GPTConfig(num_hidden_layers=1)))[:3]
    ['transformer.wte.weight', 'transformer.h.0.attn.c_q.weight', 'transformer.h.0.attn.c_k.weight']
    """
    with_values = config.value_embedding_layers or []
    names = ["resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"] if config.residual_scaling else []
    names.append("transformer.wte.weight")
    for i in range(config.num_hidden_layers):
        names += [f"transformer.h.{i}.{part}.weight" for part in _LAYER_NAMES if part != "attn.ve_gate" or i in with_values]
    names.append("lm_head.weight")
    if config.residual_scaling:
        names += ["smear_gate.weight", *(f"value_embeds.{i}.weight" for i in with_values)]
    return {name: our_name(name) for name in names}


def padded_rows(vocab_size: int) -> int:
    """Return the vocabulary rows that later generations store.

    >>> padded_rows(4090), padded_rows(4096)
    (4096, 4096)
    """
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def layer_windows(pattern: str, num_layers: int, sequence_len: int) -> list[int]:
    """Turn nanochat's window pattern into keys seen per layer, the token itself included.

    A short window is a quarter of sequence_len rounded up to a multiple of 128, a long one is sequence_len, and the last layer
    is always long; each admits that many previous tokens beside the token itself.

    >>> layer_windows("SSL", 4, 1024)
    [257, 257, 1025, 1025]
    """
    if not isinstance(pattern, str) or set(pattern.upper()) - set("SL") or not pattern:
        raise CheckpointError(f"window_pattern is {pattern!r}; it may hold the letters S and L only.")
    quarter = -(-sequence_len // 4)
    sizes = {"S": -(-quarter // 128) * 128, "L": sequence_len}
    letters = [pattern.upper()[i % len(pattern)] for i in range(num_layers - 1)] + ["L"]
    return [sizes[letter] + 1 for letter in letters]


def window_pattern(windows: list[int] | None, sequence_len: int) -> str:
    """Find the shortest pattern that gives these windows.

    >>> window_pattern([257, 257, 1025, 257, 257, 1025], 1024)
    'SSL'

    Raises:
        CheckpointError: where no pattern of S and L gives them.
    """
    sizes = {size: letter for letter in "SL" for size in layer_windows(letter + "L", 2, sequence_len)[:1]}
    letters = "".join(sizes.get(window, "?") for window in windows or [])
    for length in range(1, len(letters) + 1):
        pattern = letters[:length]
        if "?" not in pattern and layer_windows(pattern, len(letters), sequence_len) == windows:
            return pattern
    raise CheckpointError(
        f"layer_windows is {windows}, which no window_pattern of nanochat gives: with sequence_len {sequence_len} each layer sees "
        f"{' or '.join(map(str, sorted(sizes)))} keys and the last one sees {sequence_len + 1}."
    )


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)))


def choose_step(folder: Path, step: int | None = None) -> int:
    """Return the step to read from a checkpoint folder: the one asked for, or the last."""
    steps = _steps(folder)
    if not steps:
        raise CheckpointError(
            f"{folder} holds no model_<step>.pt. Name the folder of one nanochat checkpoint, such as base_checkpoints/d20."
        )
    if step is not None and step not in steps:
        raise CheckpointError(f"{folder} has no step {step}. Its steps are {', '.join(map(str, steps))}.")
    return steps[-1] if step is None else step


def _read_meta(path: Path) -> dict:
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. It belongs beside the model file: copy it from where the model came from.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Copy it again from where the model came from.") from error
    fields = meta.get("model_config") if isinstance(meta, dict) else None
    fields = fields if isinstance(fields, dict) else {}
    missing = [name for name in _SEQUENCE_FIELDS if name not in fields]
    if missing:
        raise CheckpointError(f"{path} has no {', '.join(missing)} under model_config, so it is not a nanochat meta file.")
    for name in _SEQUENCE_FIELDS:
        if type(fields[name]) is not int or fields[name] < 1:
            raise CheckpointError(f"{path} has {name} = {fields[name]!r} under model_config, but nanochat writes a whole number above 0.")
    return meta


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load it all the same
        raise CheckpointError(
            f"{path} holds something other than tensors, or it is damaged; such a file may carry code and is not loaded. "
            "Pass the model file as nanochat wrote it."
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} cannot be read as a torch checkpoint: it is damaged or cut short ({reason}). Copy it again from where it came from."
        ) from error
    pairs = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in pairs):
        raise CheckpointError(f"{path} does not hold a dictionary of tensors by name, so it is not a nanochat model file.")
    return tensors


def nanochat_config(fields: dict, tensors: Collection[str], path: Path) -> GPTConfig:
    """Read the architecture off the fields of a meta file, and its generation off the tensors, as older meta files do not name it."""
    layers = fields["n_layer"]
    unknown = set(fields) - {*_SEQUENCE_FIELDS, "window_pattern"}
    if unknown:
        raise CheckpointError(f"{path} has {', '.join(sorted(unknown))} under model_config, which no known generation of nanochat has.")
    later = {}
    if "smear_lambda" in tensors or "resid_lambdas" in tensors or "window_pattern" in fields:
        later = {
            "rope_theta": 100000.0,
            "query_key_scale": 1.2,
            "layer_windows": layer_windows(fields.get("window_pattern", "L"), layers, fields["sequence_len"]),
            "value_embedding_layers": [i for i in range(layers) if i % 2 == (layers - 1) % 2],
            "residual_scaling": True,
            "smear": True,
            "backout": True,
        }
    try:
        return GPTConfig(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["n_embd"],
            num_hidden_layers=layers,
            num_attention_heads=fields["n_head"],
            num_key_value_heads=fields["n_kv_head"],
            max_position_embeddings=fields["sequence_len"],
            **later,
        )
    except ValueError as error:
        raise CheckpointError(f"{path} describes a model that cannot be: {error}") from error


def _patch_old_tensors(tensors: dict[str, torch.Tensor], config: GPTConfig) -> None:
    """Add what nanochat itself adds to 2026 checkpoints written before residual scaling."""
    if config.residual_scaling:
        tensors.setdefault("resid_lambdas", torch.ones(config.num_hidden_layers))
        tensors.setdefault("x0_lambdas", torch.zeros(config.num_hidden_layers))


def _check_tensors(names: dict[str, str | None], tensors: dict[str, torch.Tensor], config: GPTConfig, path: Path) -> None:
    with torch.device("meta"):
        expected = {name: parameter.shape for name, parameter in GPTForCausalLM(config).named_parameters()}
    unknown = [name for name, ours in names.items() if ours not in expected]
    if unknown:
        raise CheckpointError(f"{path} has tensors that are not part of the model its meta file describes: {', '.join(unknown[:10])}.")
    missing = sorted(set(expected) - set(names.values()))
    if missing:
        raise CheckpointError(f"{path} lacks tensors of the model its meta file describes: {', '.join(missing[:10])}.")
    rows = padded_rows(config.vocab_size)
    for name, ours in names.items():
        shape, wanted = tuple(tensors[name].shape), tuple(expected[ours])
        padded = (rows, *wanted[1:]) if ours.startswith(VOCABULARY_ROWS) else wanted
        if shape not in (wanted, padded):
            raise CheckpointError(f"{path}: {name} has shape {shape}, but the meta file's model needs {wanted}.")


__all__ = [
    "CheckpointError",
    "NanochatCheckpoint",
    "build_model",
    "choose_step",
    "is_nanochat_checkpoint",
    "layer_windows",
    "load_nanochat_checkpoint",
    "load_nanochat_model",
    "nanochat_config",
    "nanochat_names",
    "padded_rows",
    "window_pattern",
]
