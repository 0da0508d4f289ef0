"""MuonAdamW: Muon for matrices, AdamW for everything else, in one optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from chatsft.optim.orthogonalization import orthogonalize_2025, orthogonalize_2026, reduce_variance, second_momentum_shape
from chatsft.optim.schedule import muon_momentum

ORTHOGONALIZE = {"2025": orthogonalize_2025, "2026": orthogonalize_2026}
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DEFAULTS = {
    "adamw": {"betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.0},
    "muon": {"rule": "2026", "momentum": 0.95, "momentum_warmup_steps": 0, "weight_decay": 0.0, "precision": None, "num_steps": 0},
}


class MuonAdamW(torch.optim.Optimizer):
    """Step each parameter group by its `kind`.

    A "muon" group holds 2-D weights and takes a `rule`: "2025" is Muon as published, with Nesterov momentum; "2026" adds
    Polar Express, the normalisations around it, and NorMuon's variance reduction (beta2 0.9). Both decay weights only where
    the step would shrink them anyway. `momentum_warmup_steps` raises the momentum from 0.85 to `momentum`. `precision`
    ("bfloat16" or "float32") is that of the matrix products; None takes bfloat16 on CUDA and float32 elsewhere, where
    bfloat16 products are emulated.

    An "adamw" group runs torch's own AdamW and keeps its state names.

    Args:
        params: parameter groups, each with `kind` and `lr`, as `parameter_groups` makes them.
    """

    def __init__(self, params: Iterable[dict]):
        super().__init__(params, defaults={})

    def add_param_group(self, param_group: dict) -> None:
        kind = param_group.get("kind")
        if kind not in DEFAULTS:
            raise ValueError(f"parameter group has kind {kind!r}, expected one of {', '.join(DEFAULTS)}.")
        super().add_param_group({**DEFAULTS[kind], **param_group})
        _check_group(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient; the others, and their state, are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params and group["kind"] == "muon":
                self._step_muon(group, params)
            elif params:
                self._step_adamw(group, params)
        return loss

    def _step_adamw(self, group: dict, params: list[Tensor]) -> None:
        states = [self._adamw_state(param) for param in params]
        fused = all(param.is_cuda for param in params)
        adamw(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            foreach=not fused,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def _step_muon(self, group: dict, params: list[Tensor]) -> None:
        momentum = muon_momentum(group["num_steps"], group["momentum"], group["momentum_warmup_steps"])
        gradients = [param.grad for param in params]
        buffers = [self._muon_state(param, group["rule"])["momentum_buffer"] for param in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        for indices in _same_shape(params):
            stacked = torch.stack([nesterov[i] for i in indices])
            self._apply_muon(group, [params[i] for i in indices], stacked)
        group["num_steps"] += 1

    def _apply_muon(self, group: dict, params: list[Tensor], stacked: Tensor) -> None:
        """Turn the stacked momenta (n, rows, columns) of equal matrices into their step."""
        directions = _orthogonalize(stacked, group["rule"], group["precision"])
        if group["rule"] == "2026":
            buffers = [self.state[param]["second_momentum_buffer"] for param in params]
            second_momentum = torch.stack(buffers).float()
            directions = reduce_variance(directions, second_momentum, beta2=0.9)
            torch._foreach_copy_(buffers, list(second_momentum.unbind()))
        if group["weight_decay"]:
            weights = torch.stack(params).float()
            directions = directions + group["weight_decay"] * weights * (directions * weights >= 0)
        rows, columns = stacked.shape[-2:]
        learning_rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(params, list(directions.to(stacked.dtype).unbind()), alpha=-learning_rate)

    def _adamw_state(self, param: Tensor) -> dict:
        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        if param.is_cuda and not state["step"].is_cuda:  # the fused kernel counts on the device; a checkpoint may come from CPU
            state["step"] = state["step"].to(param.device)
        return state

    def _muon_state(self, param: Tensor, rule: str) -> dict:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        if rule == "2026" and "second_momentum_buffer" not in state:
            state["second_momentum_buffer"] = param.new_zeros(second_momentum_shape(*param.shape))
        return state


def _check_group(group: dict) -> None:
    if "lr" not in group:
        raise ValueError(f"parameter group {group.get('name', group['kind'])!r} has no lr. Give it a learning rate.")
    if group["kind"] != "muon":
        return
    for param in group["params"]:
        if param.ndim != 2:
            raise ValueError(
                f"a muon group got a parameter of shape {tuple(param.shape)}, expected two dimensions. Put it in an adamw group."
            )
    if group["rule"] not in ORTHOGONALIZE:
        raise ValueError(f"muon rule {group['rule']!r} is unknown, expected one of {', '.join(ORTHOGONALIZE)}.")
    if group["precision"] not in (None, *PRECISIONS):
        raise ValueError(f"muon precision {group['precision']!r} is unknown, expected one of {', '.join(PRECISIONS)}.")


def _same_shape(params: list[Tensor]) -> list[list[int]]:
    """Return the indices of `params` that can be stacked, in order of first appearance."""
    indices = defaultdict(list)
    for index, param in enumerate(params):
        indices[param.shape, param.dtype, param.device].append(index)
    return list(indices.values())


def _orthogonalize(stacked: Tensor, rule: str, precision: str | None) -> Tensor:
    on_cuda = stacked.is_cuda
    function = _compiled(rule) if on_cuda else ORTHOGONALIZE[rule]
    return function(stacked, PRECISIONS[precision or ("bfloat16" if on_cuda else "float32")])


@cache
def _compiled(rule: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    """Compile once per process, on first use: one graph per stack shape."""
    return torch.compile(ORTHOGONALIZE[rule], dynamic=False)
