"""Muon's work and state are shared out over processes, and its steps stay those of one process."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from chatsft.optim.distributed import assign_owners, local
from chatsft.optim.muon import MuonAdamW

SHAPES = [(8, 12), (12, 8), (8, 12), (3, 5), (8, 12), (12, 8), (1, 6), (8, 8), (1, 6)]
RULES = ["2025", "2026"]


class Matrices(nn.Module):
    """Matrices for Muon in odd numbers and heights, two of them with fewer rows than processes, and a vector for AdamW."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrices = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES)
        self.vector = nn.Parameter(torch.randn(5, generator=generator))

    def forward(self) -> None:
        pass


def build_optimizer(model: Matrices, rule: str, group=None) -> MuonAdamW:
    muon = {"kind": "muon", "lr": 0.02, "rule": rule, "weight_decay": 0.1, "momentum_warmup_steps": 4, "precision": "float32"}
    groups = [{**muon, "params": list(model.matrices)}, {"kind": "adamw", "lr": 0.01, "params": [model.vector]}]
    return MuonAdamW(groups, process_group=group)


def take_steps(optimizer: MuonAdamW, model: Matrices, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for param in model.parameters():
            gradient = torch.randn(param.shape, generator=generator)
            param.grad = as_held(gradient, param)
        optimizer.step()


def as_held(tensor: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    if not isinstance(param, DTensor):
        return tensor
    rows = tensor.chunk(dist.get_world_size())
    own = rows[dist.get_rank()] if dist.get_rank() < len(rows) else tensor[:0]
    return DTensor.from_local(own, param.device_mesh, param.placements, shape=tensor.shape, stride=tensor.stride())


def weights(model: Matrices) -> list[torch.Tensor]:
    return [(param.full_tensor() if isinstance(param, DTensor) else param).detach().clone() for param in model.parameters()]


def step_alone(rule: str, steps: int = 6) -> tuple[list[torch.Tensor], dict]:
    model = Matrices()
    optimizer = build_optimizer(model, rule)
    take_steps(optimizer, model, range(steps))
    return weights(model), optimizer.state_dict()


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def assert_same_state(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for number, state in expected.items():
        assert actual[number].keys() == state.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(actual[number][key], tensor, rtol=1e-5, atol=1e-6, msg=f"{number} {key}")


def test_owners_have_as_much_to_do():
    shapes = ((64, 64),) * 48 + ((256, 64),) * 12 + ((64, 256),) * 12 + ((4, 12),) * 6
    costs = [4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3 for shape in shapes]
    for processes in (1, 2, 3, 8):
        owners = assign_owners(shapes, processes)
        loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == process) for process in range(processes)]
        assert max(loads) - min(loads) <= max(costs)
    assert max(loads) < 1.1 * min(loads)


def step_replicated(rule: str) -> tuple[list[torch.Tensor], set[int], bytes]:
    """Step on both ranks; return the weights, which matrices this one keeps the state of, and on rank 0 the saved state."""
    model = Matrices()
    optimizer = build_optimizer(model, rule, dist.group.WORLD)
    take_steps(optimizer, model, range(6))
    with pytest.raises(RuntimeError, match=r"Call consolidate_state_dict\(\)"):
        optimizer.state_dict()
    kept = {number for number, param in enumerate(model.matrices) if param in optimizer.state}
    optimizer.consolidate_state_dict(keep=dist.get_rank() == 0)
    file = io.BytesIO()
    if dist.get_rank() == 0:
        torch.save(optimizer.state_dict(), file)
    return weights(model), kept, file.getvalue()


@pytest.mark.parametrize("rule", RULES)
def test_replicated_matrices_step_as_on_one_process_and_each_state_is_kept_once(two_processes, rule):
    expected, state = step_alone(rule)
    (first, kept, saved), (second, kept_too, _) = two_processes.run(step_replicated, rule)
    assert_close(first, expected)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert kept | kept_too == set(range(len(SHAPES)))
    assert not kept & kept_too
    loaded = torch.load(io.BytesIO(saved), weights_only=True)
    assert_same_state(loaded["state"], state["state"])
    assert loaded["param_groups"] == state["param_groups"]


def resume_replicated(rule: str, start: list[torch.Tensor], state: dict) -> list[torch.Tensor]:
    model = Matrices()
    with torch.no_grad():
        for param, value in zip(model.parameters(), start, strict=True):
            param.copy_(value)
    optimizer = build_optimizer(model, rule, dist.group.WORLD if dist.is_initialized() else None)
    optimizer.load_state_dict(copy.deepcopy(state))
    if dist.is_initialized():
        assert 0 < sum(param in optimizer.state for param in model.matrices) < len(SHAPES)
    take_steps(optimizer, model, range(3, 6))
    return weights(model)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_saved_by_one_process_is_resumed_by_two(two_processes, rule):
    expected = step_alone(rule)[0]
    start, state = step_alone(rule, steps=3)
    assert all(torch.equal(one, other) for one, other in zip(resume_replicated(rule, start, state), expected, strict=True))
    for resumed in two_processes.run(resume_replicated, rule, start, state):
        assert_close(resumed, expected)


def step_sharded(rule: str) -> tuple[list[torch.Tensor], dict]:
    """Step rows of matrices on both ranks; return the whole weights and the whole state."""
    model = fully_shard(Matrices(), mesh=init_device_mesh("cpu", (2,)))
    optimizer = build_optimizer(model, rule, dist.group.WORLD)
    take_steps(optimizer, model, range(6))
    assert all(isinstance(param, DTensor) for param in model.parameters())
    for param in model.matrices:
        assert optimizer.state[param]["momentum_buffer"].to_local().shape == param.to_local().shape
        if rule == "2026":
            second = optimizer.state[param]["second_momentum_buffer"]
            assert second.to_local().numel() == -(-max(param.shape) // 2) - dist.get_rank() * (max(param.shape) % 2)
    state = optimizer.state_dict()["state"]
    whole = {
        number: {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in entry.items()}
        for number, entry in state.items()
    }
    return weights(model), whole


@pytest.mark.parametrize("rule", RULES)
def test_sharded_matrices_step_as_on_one_process_and_their_state_is_sharded(two_processes, rule):
    expected, state = step_alone(rule)
    for stepped, whole in two_processes.run(step_sharded, rule):
        assert_close(stepped, expected)
        assert_same_state(whole, state["state"])


def leave_out_and_resume(rule: str, kind: str) -> tuple[list[torch.Tensor], list[bool]]:
    """Take three steps, one that is left out and two more, each from the saved state of the one before; tell what lies in one stack."""
    model = Matrices()
    model = fully_shard(model, mesh=init_device_mesh("cpu", (2,))) if kind == "sharded" else model
    group = None if kind == "alone" else dist.group.WORLD
    optimizer = build_optimizer(model, rule, group)
    take_steps(optimizer, model, range(3))
    for param in model.parameters():
        param.grad = torch.full_like(param, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    optimizer.forget_step()
    for step in range(3, 6):
        optimizer.consolidate_state_dict()
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = build_optimizer(model, rule, group)
        optimizer.load_state_dict(state)
        take_steps(optimizer, model, range(step, step + 1))
    storages = {}
    for param in model.matrices:
        if param in optimizer.state:
            momentum = local(optimizer.state[param]["momentum_buffer"])
            storages.setdefault(param.shape, set()).add(momentum.untyped_storage().data_ptr())
    return weights(model), [len(places) == 1 for places in storages.values()]


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_is_left_out_and_states_that_are_loaded_change_nothing(two_processes, rule, kind):
    expected = step_alone(rule)[0]
    alone, _ = leave_out_and_resume(rule, "alone")
    assert all(torch.equal(one, other) for one, other in zip(alone, expected, strict=True))
    for stepped, in_one_stack in two_processes.run(leave_out_and_resume, rule, kind):
        assert_close(stepped, expected)
        assert all(in_one_stack)


def step_some(rule: str, kind: str) -> list[torch.Tensor]:
    """Take steps in which every other matrix has no gradient now and then."""
    model = Matrices()
    model = fully_shard(model, mesh=init_device_mesh("cpu", (2,))) if kind == "sharded" else model
    optimizer = build_optimizer(model, rule, None if kind == "alone" else dist.group.WORLD)
    for step in range(6):
        generator = torch.Generator().manual_seed(1000 + step)
        for number, param in enumerate(model.parameters()):
            gradient = torch.randn(param.shape, generator=generator)
            param.grad = None if step % 2 and number % 2 else as_held(gradient, param)
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_matrices_without_a_gradient_are_left_alone(two_processes, kind):
    expected = step_some("2026", "alone")
    for stepped in two_processes.run(step_some, "2026", kind):
        assert_close(stepped, expected)
