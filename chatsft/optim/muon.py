"""MuonAdamW: Muon for matrices, AdamW for everything else, in one optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from chatsft.optim.distributed import Alone, assign_owners, exchange_between, gather_states, local, num_processes, zeros_beside
from chatsft.optim.orthogonalization import (
    apply_momentum,
    orthogonalize_2025,
    orthogonalize_2026,
    reduce_variance,
    second_momentum_shape,
)
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

    Several processes share the work and the state of Muon (see chatsft.optim.distributed). Parameters that FSDP2 sharded are recognised.
    Where every process holds all parameters and the same gradients (DDP), name their group: then each process keeps the momentum of its
    share alone, and `consolidate_state_dict` has to run on all of them before one calls `state_dict`.

    A step can be left out by the device: where `found_inf`, set before the step, is 1, weights and state stay as they are. The attribute
    is the one that torch's GradScaler sets; it is a tensor from the first step on, so that compiled code meets one kind of it. Muon counts
    its steps on the host, so it has to be told with `forget_step`.

    Args:
        params: parameter groups, each with `kind` and `lr`, as `parameter_groups` makes them.
        process_group: the processes that hold the same parameters; None where each steps all of its own.
    """

    def __init__(self, params: Iterable[dict], process_group: ProcessGroup | None = None):
        self.process_group = process_group
        self.consolidated = None
        self.found_inf: Tensor | None = None
        self.counted: list[dict] = []
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
        loss, self.consolidated, self.counted = None, None, []
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.found_inf is None:
            self.found_inf = torch.zeros((), device=self.param_groups[0]["params"][0].device)
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params and group["kind"] == "muon":
                self._step_muon(group, params)
            elif params:
                self._step_adamw(group, params)
        return loss

    def forget_step(self) -> None:
        """Take back the count of the last step, which the device has left out."""
        for group in self.counted:
            group["num_steps"] -= 1
        self.counted = []

    def _step_adamw(self, group: dict, params: list[Tensor]) -> None:
        """Step elementwise, so that of a sharded parameter every process steps what it holds."""
        states = [self._adamw_state(param) for param in params]
        adamw(
            [local(param) for param in params],
            [local(param.grad) for param in params],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
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
        owners, exchanges = self._owners(group), []
        for indices in _same_shape(params):
            matrices = [params[index] for index in indices]
            exchange = exchange_between(matrices, [owners[param] for param in matrices], self.process_group)
            self._step_matrices(group, exchange, momentum)
            exchange.publish()
            exchanges.append(exchange)
        for exchange in exchanges:
            exchange.finish()
        group["num_steps"] += 1
        self.counted.append(group)

    def _step_matrices(self, group: dict, exchange: Alone, momentum: float) -> None:
        """Turn the gradients of equal matrices into their step: elementwise on what this process holds, the rest on whole matrices."""
        params = exchange.mine
        if not params:
            return
        states = [self._muon_state(param, group["rule"]) for param in params]
        gradients = torch.stack([local(param.grad) for param in params])
        buffers = merge([local(state["momentum_buffer"]) for state in states])
        share = torch.full((), 1 - momentum, device=buffers.device)  # a number would be compiled in, and momentum warms up
        nesterov = _on(buffers.device, apply_momentum)(gradients, buffers, share, self.found_inf)
        rows, columns = params[0].shape
        directions = self._orthogonalize(exchange.to_owners(nesterov, rows), group["rule"], group["precision"])
        if group["rule"] == "2026":
            directions = self._reduce_variance(directions, [local(state["second_momentum_buffer"]) for state in states], exchange)
        directions, weights = exchange.to_holders(directions, rows), [local(param) for param in params]
        if group["weight_decay"]:
            stacked = torch.stack(weights).float()
            decay = group["weight_decay"] * (1 - self.found_inf)
            directions = directions + decay * stacked * (directions * stacked >= 0)
        learning_rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(weights, list(directions.to(nesterov.dtype).unbind()), alpha=-learning_rate)

    def _orthogonalize(self, stacked: Tensor, rule: str, precision: str | None) -> Tensor:
        if not len(stacked):  # this process owns none
            return stacked.float()
        precision = PRECISIONS[precision or ("bfloat16" if stacked.is_cuda else "float32")]
        return _on(stacked.device, ORTHOGONALIZE[rule])(stacked, precision, self.found_inf)

    def _reduce_variance(self, directions: Tensor, buffers: list[Tensor], exchange: Alone) -> Tensor:
        """Apply NorMuon to whole matrices, whose second momenta are spread along their longer side."""
        shape = second_momentum_shape(*directions.shape[-2:])
        stacked = exchange.to_owners(torch.stack(buffers).flatten(1)[..., None], max(shape)).view(-1, *shape).float()
        if len(directions):
            directions = _on(directions.device, reduce_variance)(directions, stacked, beta2=0.9, found_inf=self.found_inf)
        returned = exchange.to_holders(stacked.flatten(1)[..., None], max(shape))
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(returned, buffers, strict=True)])
        return directions

    def _owners(self, group: dict) -> dict[Tensor, int]:
        """Name the process that orthogonalizes each matrix, the same on all of them and at every step."""
        params = group["params"]
        owners = assign_owners(tuple(tuple(param.shape) for param in params), num_processes(params[0], self.process_group))
        return dict(zip(params, owners, strict=True))

    def _adamw_state(self, param: Tensor) -> dict:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), device=param.device)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        state["step"] = state["step"].to(param.device)  # the fused kernel counts there; a checkpoint may come from elsewhere
        return state

    def _muon_state(self, param: Tensor, rule: str) -> dict:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        if rule == "2026" and "second_momentum_buffer" not in state:
            state["second_momentum_buffer"] = zeros_beside(param, second_momentum_shape(*param.shape))
        return state

    def consolidate_state_dict(self, keep: bool = True) -> None:
        """Bring the momenta that other processes keep here, so that `state_dict` is whole, whatever the number of processes.

        Every process of the group has to call this, those that do not write a checkpoint with keep=False. It holds until the next step.
        """
        if self.process_group is None:
            return
        rank, states, device = self.process_group.rank(), {}, None
        for number, param, owner in self._lent_matrices():
            device = param.device
            if owner == rank and param in self.state:
                states[number] = self.state[param]
        gathered = gather_states(states, self.process_group, device, keep)
        self.consolidated = gathered if keep else None

    def state_dict(self) -> dict:
        """Return the state of all processes.

        Raises:
            RuntimeError: where that of the others has not been brought here.
        """
        state_dict = super().state_dict()
        if self.consolidated is not None:
            return {**state_dict, "state": {**state_dict["state"], **self.consolidated}}
        if any(owner != self.process_group.rank() for _, _, owner in self._lent_matrices(stepped=True)):
            raise RuntimeError("other processes keep a part of the momentum. Call consolidate_state_dict() on every process first.")
        return state_dict

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a whole state, but for the matrices that other processes keep."""
        theirs = {number for number, _, owner in self._lent_matrices() if owner != self.process_group.rank()}
        own = {number: state for number, state in state_dict["state"].items() if number not in theirs}
        super().load_state_dict({**state_dict, "state": own})

    def _lent_matrices(self, stepped: bool = False) -> Iterator[tuple[int, Tensor, int]]:
        """Yield number, parameter and owner of each matrix that all processes hold and one keeps the state of, or of those stepped yet."""
        start = 0
        for group in self.param_groups:
            if self.process_group is not None and group["kind"] == "muon" and (group["num_steps"] or not stepped):
                owned = enumerate(self._owners(group).items(), start)
                yield from ((number, param, owner) for number, (param, owner) in owned if not isinstance(param, DTensor))
            start += len(group["params"])


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


def merge(tensors: list[Tensor]) -> Tensor:
    """Return tensors of one shape as one stack that shares their memory; where they do not lie in a row yet, they are moved.

    >>> first, second = torch.zeros(2), torch.ones(2)
    >>> merge([first, second]).mul_(3)
    tensor([[0., 0.],
            [3., 3.]])
    >>> second
    tensor([3., 3.])
    """
    start, size = tensors[0].data_ptr(), tensors[0].nbytes
    lie_in_a_row = all(tensor.data_ptr() == start + place * size for place, tensor in enumerate(tensors))
    if not lie_in_a_row or tensors[-1].untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr():
        for tensor, moved in zip(tensors, torch.stack(tensors), strict=True):
            tensor.set_(moved)
    return tensors[0].as_strided((len(tensors), *tensors[0].shape), (tensors[0].numel(), *tensors[0].stride()))


def _same_shape(params: list[Tensor]) -> list[list[int]]:
    """Return the indices of `params` that can be stacked, in order of first appearance."""
    indices = defaultdict(list)
    for index, param in enumerate(params):
        indices[param.shape, param.dtype, param.device, isinstance(param, DTensor)].append(index)
    return list(indices.values())


def _on(device: torch.device, function: Callable) -> Callable:
    """Return what computes a function on a device: on CUDA, compiled code."""
    return _compiled(function) if device.type == "cuda" else function


@cache
def _compiled(function: Callable) -> Callable:
    """Compile once per process, on first use: one graph per stack shape."""
    return torch.compile(function, dynamic=False)
