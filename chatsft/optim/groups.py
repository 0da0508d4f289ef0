"""Which parameter learns how: nanochat's optimizer groups for a model's parameters."""

from collections.abc import Iterable

import torch
from torch import nn

OPTIMIZERS = ("muon_2025", "muon_2026", "adamw")

# AdamW settings of 2026. Roles that 2025 did not have keep these under every optimizer.
ADAMW_2026 = {
    "unembedding": {"betas": (0.8, 0.96), "weight_decay": 0.01},
    "embedding": {"betas": (0.8, 0.995), "weight_decay": 0.001},
    "value_embeddings": {"betas": (0.8, 0.995), "weight_decay": 0.01},
    "resid_lambdas": {"betas": (0.8, 0.95), "weight_decay": 0.05},
    "x0_lambdas": {"betas": (0.96, 0.95), "weight_decay": 0.0},
    "smear_backout": {"betas": (0.8, 0.95), "weight_decay": 0.0},
    "vectors": {"betas": (0.8, 0.95), "weight_decay": 0.0},
    "vision": {"betas": (0.8, 0.95), "weight_decay": 0.0},
}
VISION_MODULES = {"vision_tower", "projector"}
SCALAR_ROLES = {
    "resid_lambdas": "resid_lambdas",
    "x0_lambdas": "x0_lambdas",
    "smear_gate.weight": "smear_backout",
    "smear_lambda": "smear_backout",
    "backout_lambda": "smear_backout",
}


def parameter_groups(
    model: nn.Module,
    *,
    optimizer: str,
    matrix_lr: float,
    embedding_lr: float,
    unembedding_lr: float,
    scalar_lr: float,
    vision_lr: float = 0.001,
    weight_decay: float = 0.0,
    init_lr_frac: float = 1.0,
    precision: str | None = None,
) -> list[dict]:
    """Put every trainable parameter of `model` in exactly one group for `MuonAdamW`.

    The AdamW rates of vocabulary-sized weights scale with (width / 768) ** -0.5, the others do not. Tied embeddings form
    one group at the unembedding rate: the output side is the one that diverges at the embedding's.

    Of other models, norms and biases (one dimension) are `vectors`, at 0.01 of scalar_lr without decay, as nanochat treats its gains on
    the residual stream; further embeddings (learned positions) are treated as value embeddings. Stacked experts (three dimensions) are
    matrices to AdamW and an error under Muon.

    What reads images, the projector and an encoder that is not frozen, steps by AdamW at vision_lr, whatever init_lr_frac is.

    Args:
        model: a causal language model with `get_input_embeddings` and `get_output_embeddings`, also one wrapped by peft.
        optimizer: "muon_2025", "muon_2026", or "adamw", which steps the matrices with AdamW at `matrix_lr`.
        weight_decay: of the matrices under muon_2026 and adamw; 2025's Muon decays nothing, there it is that of the
            embedding and unembedding, and so it is under adamw.
        init_lr_frac: multiplies every rate but vision_lr.
        precision: of Muon's matrix products, see `MuonAdamW`.

    Returns:
        Groups with `name`, `kind`, `params`, `lr` and the rest; roles without parameters are left out.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r} is unknown, expected one of {', '.join(OPTIMIZERS)}.")
    width_scale = (_whole_shape(model.get_input_embeddings().weight)[1] / 768) ** -0.5
    rates = {
        "unembedding": unembedding_lr * width_scale,
        "embedding": embedding_lr * width_scale,
        "value_embeddings": 0.5 * embedding_lr * width_scale,
        "resid_lambdas": 0.01 * scalar_lr,
        "x0_lambdas": scalar_lr,
        "smear_backout": 0.2,
        "vectors": 0.01 * scalar_lr,
        "vision": vision_lr,
        "matrices": matrix_lr,
    }
    members = _params_by_role(model, rates, most_dimensions=3 if optimizer == "adamw" else 2)
    return [
        {
            "name": role,
            "params": members[role],
            "lr": rate if role == "vision" else rate * init_lr_frac,
            **_hyperparameters(role, optimizer, weight_decay, precision),
        }
        for role, rate in rates.items()
        if members[role]
    ]


def _params_by_role(model: nn.Module, roles: Iterable[str], most_dimensions: int) -> dict[str, list[nn.Parameter]]:
    embeddings = _embedding_roles(model)
    members = {role: [] for role in roles}
    unknown = []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        role = _vision_role(name) or embeddings.get(id(param)) or _role_by_name(name) or _role_by_shape(param, most_dimensions)
        if role is None:
            unknown.append(f"{name} {tuple(param.shape)}")
        else:
            members[role].append(param)
    if unknown:
        raise ValueError(
            f"no optimizer group for {', '.join(unknown)}: Muon takes matrices of two dimensions. Set optimizer: adamw, which takes three."
        )
    return members


def _embedding_roles(model: nn.Module) -> dict[int, str]:
    """Map id(weight) to its role; the unembedding comes last so that it names a tied weight."""
    roles = {id(module.weight): "value_embeddings" for module in model.modules() if isinstance(module, nn.Embedding)}
    roles[id(model.get_input_embeddings().weight)] = "embedding"
    output = model.get_output_embeddings()
    if output is not None:
        roles[id(output.weight)] = "unembedding"
    return roles


def _vision_role(name: str) -> str | None:
    return "vision" if VISION_MODULES & set(name.split(".")) else None


def _role_by_name(name: str) -> str | None:
    if "trainable_tokens_delta" in name:  # the rows of an embedding that peft trains
        return "embedding"
    for ending, role in SCALAR_ROLES.items():
        if name == ending or name.endswith(f".{ending}"):
            return role
    return None


def _role_by_shape(param: nn.Parameter, most_dimensions: int) -> str | None:
    dimensions = len(_whole_shape(param))
    if dimensions <= 1:
        return "vectors"
    return "matrices" if dimensions <= most_dimensions else None


def _whole_shape(param: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter, of which ZeRO-3 holds a flat piece and notes the whole."""
    return getattr(param, "ds_shape", param.shape)


def _hyperparameters(role: str, optimizer: str, weight_decay: float, precision: str | None) -> dict:
    if role == "matrices" and optimizer == "muon_2026":
        return {"kind": "muon", "rule": "2026", "momentum_warmup_steps": 300, "weight_decay": weight_decay, "precision": precision}
    if role == "matrices" and optimizer == "muon_2025":
        return {"kind": "muon", "rule": "2025", "precision": precision}
    if role == "matrices" or (role in ("unembedding", "embedding") and optimizer != "muon_2026"):
        return {"kind": "adamw", "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": weight_decay}
    return {"kind": "adamw", "eps": 1e-10, **ADAMW_2026[role]}
