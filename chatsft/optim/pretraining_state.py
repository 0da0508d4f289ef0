"""The momenta that nanochat's pretraining leaves beside a checkpoint (2026), for fine-tuning to go on with.

Each of its processes writes optim_<step>_rank<rank>.pt. Moments of large AdamW parameters are cut along the first dimension, one part a
process; Muon's momenta of equal matrices are stacked, and the stack is cut, filled up with zeros, likewise. Parameters have numbers there,
in the order in which nanochat makes its groups.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_checkpoint import CheckpointError, nanochat_names
from chatsft.optim.distributed import zeros_beside

ADAMW_GROUPS = (
    ("lm_head.weight",),
    ("model.embed_tokens.weight",),
    ("model.value_embeddings.",),
    ("model.resid_lambdas",),
    ("model.x0_lambdas",),
    ("model.smear_gate.weight", "model.smear_lambda", "model.backout_lambda"),
)
"""nanochat's AdamW groups in their order, by our names or how they begin; matrices come after them, by shape."""

State = dict[str, Tensor]


def load_pretraining_state(optimizer: torch.optim.Optimizer, model: GPTForCausalLM, folder: str | Path, step: int) -> None:
    """Put pretraining's momenta and AdamW's step counts into a fresh optimizer.

    nanochat's own fine-tuning takes the whole file over, so that pretraining's betas and weight decay replace those of the run. Here the
    groups keep what the recipe says. Muon's momentum begins its warm-up anew, as it does there.

    Raises:
        CheckpointError: on missing or damaged files, and on any state that does not fit the model.
    """
    states = read_pretraining_state(model, Path(folder), step)
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    placed = [{key: _beside(param, key, value) for key, value in states[names[param]].items()} for param in parameters]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(enumerate(placed))})


def read_pretraining_state(model: GPTForCausalLM, folder: Path, step: int) -> dict[str, State]:
    """Read the state of every parameter by our name, in the shape that the optimizer of one process has it."""
    ranks = [_read(path) for path in find_optimizer_files(folder, step)]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    groups, files = group_names(model.config, shapes), f"{folder}/optim_{step:06d}_rank*.pt"
    sizes = [len(group["params"]) for group in ranks[0]["param_groups"]]
    if sizes != [len(group) for group in groups]:
        raise CheckpointError(f"{files} hold groups of {sizes} parameters, but the model's are {[len(group) for group in groups]}.")
    states, number = {}, 0
    for group in groups:
        parts = [[rank["state"].get(number + place, {}) for rank in ranks] for place in range(len(group))]
        is_muon = "momentum_buffer" in parts[0][0]
        found = _unstack(group, parts[0]) if is_muon else {name: _join(part, shapes[name]) for name, part in zip(group, parts, strict=True)}
        states |= {name: _fit(state, name, shapes[name], files) for name, state in found.items()}
        number += len(group)
    return states


def find_optimizer_files(folder: Path, step: int) -> list[Path]:
    """List the files of all processes in their order."""
    paths = {int(path.stem.rpartition("rank")[2]): path for path in folder.glob(f"optim_{step:06d}_rank*.pt")}
    missing = sorted(set(range(len(paths))) - set(paths))
    if not paths or missing:
        names = ", ".join(f"optim_{step:06d}_rank{rank}.pt" for rank in missing or [0])
        raise CheckpointError(
            f"{folder} lacks {names}. The optimizer can be taken over only with the files of all pretraining processes; "
            "copy them, or leave load_optimizer out."
        )
    return [paths[rank] for rank in sorted(paths)]


def group_names(config: GPTConfig, shapes: dict[str, torch.Size]) -> list[list[str]]:
    """List our parameter names in the order of nanochat's groups."""
    names = list(nanochat_names(config).values())
    matrices = [name for name in names if name.startswith("model.layers.")]
    by_shape = [[name for name in matrices if shapes[name] == shape] for shape in sorted({shapes[name] for name in matrices})]
    return [[name for start in starts for name in names if name.startswith(start)] for starts in ADAMW_GROUPS] + by_shape


def _read(path: Path) -> dict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as an optimizer state ({reason}). Copy it again, or leave load_optimizer out."
        ) from error
    if not isinstance(content, dict) or not {"state", "param_groups"} <= set(content):
        raise CheckpointError(f"{path} holds no optimizer state, as nanochat writes it. Leave load_optimizer out.")
    return content


def _join(parts: list[State], shape: torch.Size) -> State:
    """Join the moments of one AdamW parameter; small ones are whole on every process."""
    is_whole = len(parts) == 1 or parts[0]["exp_avg"].shape[:1] >= shape[:1]
    joined = {name: parts[0][name] if is_whole else torch.cat([part[name] for part in parts]) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(float(parts[0]["step"])), **joined}


def _unstack(group: list[str], parts: list[State]) -> dict[str, State]:
    """Take the momenta of equal matrices apart."""
    stacks = {name: torch.cat([part[name] for part in parts]) for name in ("momentum_buffer", "second_momentum_buffer")}
    return {name: {key: stack[place].clone() for key, stack in stacks.items() if place < len(stack)} for place, name in enumerate(group)}


def _beside(param: Tensor, key: str, value: Tensor) -> Tensor:
    """Spread a state over the processes as its parameter is, if that is sharded."""
    if not isinstance(param, DTensor) or value.ndim == 0:
        return value
    like = zeros_beside(param, value.shape) if key == "second_momentum_buffer" else torch.zeros_like(param)
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def _fit(state: State, name: str, shape: torch.Size, files: str) -> State:
    """Cut off the padding of the vocabulary and see that the shape is the parameter's."""
    main = "momentum_buffer" if "momentum_buffer" in state else "exp_avg"
    cut = {key: value[: shape[0]] if key.startswith("exp_avg") else value for key, value in state.items()}
    if main not in cut or cut[main].shape != shape:
        found = tuple(cut[main].shape) if main in cut else "nothing"
        raise CheckpointError(
            f"{files} hold {found} for {name}, which has shape {tuple(shape)}. They belong to another model, or the files of some "
            "pretraining processes are missing. Copy all of them, or leave load_optimizer out."
        )
    return cut
