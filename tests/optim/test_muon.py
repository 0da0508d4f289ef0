import copy
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chatsft.optim.muon import MuonAdamW

FIXTURES = Path(__file__).parents[1] / "fixtures/optim"
RECORDED_2025 = load_file(FIXTURES / "muon_2025.safetensors")
RECORDED_2026 = load_file(FIXTURES / "muonadamw_2026.safetensors")
GROUPS_2026 = json.loads((FIXTURES / "muonadamw_2026.json").read_text())["groups"]
SHAPES_2025 = sorted({key.split(".")[0] for key in RECORDED_2025} - {"adamw"})
RULES = ["2025", "2026"]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def muon_group(params, **options) -> dict:
    return {"kind": "muon", "lr": 0.02, "precision": "float32", "params": params, **options}


def run_2025(precision: str) -> tuple[dict[str, nn.Parameter], MuonAdamW]:
    params = {shape: nn.Parameter(RECORDED_2025[f"{shape}.p0"].clone()) for shape in SHAPES_2025}
    optimizer = MuonAdamW([muon_group(list(params.values()), rule="2025", precision=precision)])
    for step in range(3):
        for shape, param in params.items():
            param.grad = RECORDED_2025[f"{shape}.grad{step}"].clone()
        optimizer.step()
    return params, optimizer


def test_2025_muon_equals_nanochat():
    params, optimizer = run_2025("float32")
    for shape, param in params.items():
        assert relative_error(param.data, RECORDED_2025[f"{shape}.fp32.p3"]) <= 1e-5, shape
        momentum = optimizer.state[param]["momentum_buffer"]
        assert relative_error(momentum, RECORDED_2025[f"{shape}.fp32.momentum_buffer"]) <= 1e-5, shape
        assert "second_momentum_buffer" not in optimizer.state[param]


def test_2025_muon_in_bfloat16_equals_nanochat():
    params, _ = run_2025("bfloat16")
    for shape, param in params.items():
        start, end = RECORDED_2025[f"{shape}.p0"], RECORDED_2025[f"{shape}.bf16.p3"]
        assert ((param.data - end).norm() / (end - start).norm()).item() <= 1e-3, shape  # another rounding order gives 2e-2 and more


def test_adamw_equals_torch_fused_adamw():
    param = nn.Parameter(RECORDED_2025["adamw.p0"].clone())
    optimizer = MuonAdamW([{"kind": "adamw", "lr": 0.01, "params": [param]}])
    for step in range(3):
        param.grad = RECORDED_2025[f"adamw.grad{step}"].clone()
        optimizer.step()
    assert relative_error(param.data, RECORDED_2025["adamw.p3"]) <= 1e-5
    assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq"}


def params_2026() -> list[dict[str, nn.Parameter]]:
    return [{name: nn.Parameter(RECORDED_2026[f"{name}.p0"].clone()) for name in group["params"]} for group in GROUPS_2026]


def test_2026_optimizer_equals_nanochat():
    members = params_2026()
    groups = []
    for recorded, params in zip(GROUPS_2026, members, strict=True):
        options = {key: recorded[key] for key in ("lr", "weight_decay", "betas", "eps") if key in recorded}
        precision = {"rule": "2026", "precision": "float32"} if recorded["kind"] == "muon" else {}
        groups.append({"kind": recorded["kind"], "params": list(params.values()), **options, **precision})
    optimizer = MuonAdamW(groups)
    named = {name: param for params in members for name, param in params.items()}
    for step in range(4):
        for group in optimizer.param_groups:
            group["momentum"] = 0.85 + 0.02 * step
        for name, param in named.items():
            param.grad = RECORDED_2026[f"{name}.grad{step}"].clone()
        optimizer.step()
        for name, param in named.items():
            if f"{name}.p{step + 1}" in RECORDED_2026:
                assert relative_error(param.data, RECORDED_2026[f"{name}.p{step + 1}"]) <= 1e-5, (name, step)
    for index, params in enumerate(members):
        states = [optimizer.state[param] for param in params.values()]
        for key in ("momentum_buffer", "second_momentum_buffer"):
            if GROUPS_2026[index]["kind"] == "muon":
                stacked = torch.stack([state[key] for state in states])
                assert relative_error(stacked, RECORDED_2026[f"group{index}.state.{key}"]) <= 1e-5, (index, key)


def random_params(*shapes, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(optimizer: MuonAdamW, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_of_matrices_steps_as_each_would_alone(rule):
    shapes = [(8, 12), (12, 8), (8, 12), (8, 8), (8, 12), (12, 8)]
    together, alone = random_params(*shapes), random_params(*shapes)
    take_steps(MuonAdamW([muon_group(together, rule=rule, weight_decay=0.1)]), together, range(3))
    take_steps(MuonAdamW([muon_group([param], rule=rule, weight_decay=0.1) for param in alone]), alone, range(3))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [{"kind": "adamw"}, {"kind": "muon", "rule": "2025"}, {"kind": "muon", "rule": "2026"}])
def test_a_parameter_without_gradient_is_left_alone(kind):
    params, reference = random_params((4, 6), (4, 6), (4, 6)), random_params((4, 6), (4, 6), (4, 6))
    optimizer = MuonAdamW([{"lr": 0.1, "params": params, **kind}])
    without = MuonAdamW([{"lr": 0.1, "params": [reference[0], reference[2]], **kind}])
    gradient = torch.arange(24.0).reshape(4, 6).cos()
    for param in (params[0], params[2], reference[0], reference[2]):
        param.grad = gradient.clone()
    optimizer.step()
    without.step()
    for one, other in zip(params, reference, strict=True):
        assert torch.equal(one, other)
    assert params[1] not in optimizer.state


def test_a_step_without_any_gradient_changes_nothing():
    params = random_params((4, 6))
    optimizer = MuonAdamW([muon_group(params, rule="2026", momentum_warmup_steps=10)])
    optimizer.step()
    assert torch.equal(params[0], random_params((4, 6))[0])
    assert optimizer.param_groups[0]["num_steps"] == 0


@pytest.mark.parametrize("warmed_up", [0, 2])
@pytest.mark.parametrize("rule", RULES)
def test_the_device_leaves_a_step_out_as_if_it_had_not_been(rule, warmed_up):
    shapes = [(6, 9), (6, 9), (9, 6), (5,), (7, 2)]
    params, reference = random_params(*shapes), random_params(*shapes)
    optimizers = [
        MuonAdamW([muon_group(p[:3], rule=rule, momentum_warmup_steps=4, weight_decay=0.1), {"kind": "adamw", "lr": 0.01, "params": p[3:]}])
        for p in (params, reference)
    ]
    for optimizer, p in zip(optimizers, (params, reference), strict=True):
        optimizer.found_inf = torch.zeros(())
        take_steps(optimizer, p, range(warmed_up))
    for param in params:
        param.grad = torch.full_like(param, torch.nan)
    optimizers[0].found_inf = torch.ones(())
    optimizers[0].step()
    optimizers[0].forget_step()
    optimizers[0].found_inf = torch.zeros(())
    for optimizer, p in zip(optimizers, (params, reference), strict=True):
        take_steps(optimizer, p, range(warmed_up, warmed_up + 2))
    for one, other in zip(params, reference, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*(optimizer.state_dict()["state"].values() for optimizer in optimizers), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert optimizers[0].param_groups[0]["num_steps"] == warmed_up + 2


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_not_modified(rule):
    params = random_params((4, 6), (4, 6))
    optimizer = MuonAdamW([muon_group(params, rule=rule)])
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(torch.equal(param.grad, torch.ones_like(param)) for param in params)


def mixed_groups(params: list[nn.Parameter], precision: str = "float32") -> list[dict]:
    matrices = {"rule": "2026", "momentum_warmup_steps": 4, "weight_decay": 0.1, "precision": precision}
    return [muon_group(params[:3], **matrices), {"kind": "adamw", "lr": 0.01, "params": params[3:]}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_resumes_bit_exactly_from_a_saved_state(dtype):
    shapes = [(6, 9), (6, 9), (9, 6), (5,), (7, 2)]
    straight = [nn.Parameter(param.data.to(dtype)) for param in random_params(*shapes)]
    halted = copy.deepcopy(straight)
    take = MuonAdamW(mixed_groups(straight))
    first = MuonAdamW(mixed_groups(halted))
    run = range(6)
    for step in run:
        _step_in(dtype, take, straight, step)
    for step in run[:3]:
        _step_in(dtype, first, halted, step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = MuonAdamW(mixed_groups(halted))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in run[3:]:
        _step_in(dtype, resumed, halted, step)
    assert all(torch.equal(one, other) for one, other in zip(straight, halted, strict=True))
    assert resumed.param_groups[0]["num_steps"] == 6


def _step_in(dtype: torch.dtype, optimizer: MuonAdamW, params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(dtype)
    optimizer.step()


def test_momentum_warms_up_with_the_steps_taken():
    warmed, set_by_hand = random_params((4, 6)), random_params((4, 6))
    warming = MuonAdamW([muon_group(warmed, rule="2026", momentum_warmup_steps=2)])
    constant = MuonAdamW([muon_group(set_by_hand, rule="2026")])
    for step, momentum in enumerate([0.85, 0.9, 0.95, 0.95]):
        constant.param_groups[0]["momentum"] = momentum
        take_steps(warming, warmed, range(step, step + 1))
        take_steps(constant, set_by_hand, range(step, step + 1))
        torch.testing.assert_close(warmed[0], set_by_hand[0], rtol=1e-6, atol=1e-7)


def test_a_scheduler_may_change_the_rate_between_steps():
    params = random_params((6, 9), (6, 9), (9, 6), (5,))
    optimizer = MuonAdamW(mixed_groups(params))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.5, 0.0][step])
    moved = []
    for step in range(3):
        before = [param.detach().clone() for param in params]
        take_steps(optimizer, params, range(step, step + 1))
        scheduler.step() if step < 2 else None
        moved.append([(param - old).norm().item() for param, old in zip(params, before, strict=True)])
    assert moved[0][0] > moved[1][0] > moved[2][0] == 0
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_step_size_is_the_rate_times_the_root_of_the_aspect_ratio():
    tall, wide = random_params((32, 8), (8, 32))
    start = [tall.detach().clone(), wide.detach().clone()]
    take_steps(MuonAdamW([muon_group([tall, wide], rule="2026")]), [tall, wide], range(1))
    moved = [(param - old).norm().item() for param, old in zip((tall, wide), start, strict=True)]
    assert moved == pytest.approx([0.02 * 2 * 8**0.5, 0.02 * 8**0.5], rel=1e-3)


def test_weight_decay_shrinks_only_weights_the_step_shrinks():
    (plain,), (decayed,) = random_params((6, 6)), random_params((6, 6))
    start = plain.detach().clone()
    take_steps(MuonAdamW([muon_group([plain], rule="2026")]), [plain], range(1))
    take_steps(MuonAdamW([muon_group([decayed], rule="2026", weight_decay=0.5)]), [decayed], range(1))
    shrinks = (start - plain) * start > 0
    expected = plain - 0.02 * 0.5 * start * shrinks
    assert shrinks.any() and not shrinks.all()
    torch.testing.assert_close(decayed.data, expected.data, rtol=1e-5, atol=1e-7)


def test_muon_never_waits_for_the_device():
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((4, 6), (6, 4), (4, 6))]
    optimizer = MuonAdamW([muon_group(params, rule="2026", weight_decay=0.1, momentum_warmup_steps=3)])
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer.step()  # a meta tensor has no values: reading one raises
    assert optimizer.state[params[0]]["second_momentum_buffer"].shape == (1, 6)


def test_a_zero_gradient_gives_a_finite_step():
    (param,) = random_params((4, 6))
    optimizer = MuonAdamW([muon_group([param], rule="2026")])
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(param, random_params((4, 6))[0])


def test_the_optimizer_follows_the_closure_protocol():
    (param,) = random_params((4, 6))
    optimizer = MuonAdamW([{"kind": "adamw", "lr": 0.1, "params": [param]}])

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"kind": "sgd", "lr": 0.1}, "kind 'sgd', expected one of adamw, muon"),
        ({"lr": 0.1}, "kind None"),
        ({"kind": "adamw", "name": "embedding"}, "'embedding' has no lr"),
        ({"kind": "muon", "lr": 0.1, "rule": "2024"}, "rule '2024'.*2025, 2026"),
        ({"kind": "muon", "lr": 0.1, "precision": "float16"}, "'float16'.*bfloat16, float32"),
    ],
)
def test_a_wrong_group_is_an_error_that_says_what_fits(group, message):
    with pytest.raises(ValueError, match=message):
        MuonAdamW([{**group, "params": random_params((4, 6))}])


def test_muon_refuses_a_vector():
    with pytest.raises(ValueError, match=r"shape \(5,\).*adamw group"):
        MuonAdamW([muon_group(random_params((5,)))])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler recommends TF32
@pytest.mark.parametrize("rule", RULES)
def test_cuda_steps_equal_cpu_steps(rule):
    shapes = [(6, 9), (6, 9), (9, 6), (5,), (7, 2)]
    on_cpu = random_params(*shapes)
    on_cuda = [nn.Parameter(param.data.cuda()) for param in on_cpu]
    optimizers = [MuonAdamW(mixed_groups(params)) for params in (on_cpu, on_cuda)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["rule"] = rule
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(on_cpu, on_cuda, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
        if step == 1:  # a state saved on CPU goes on on CUDA
            optimizers[1].load_state_dict(optimizers[0].state_dict())
    for one, other in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(one.data, other.data.cpu(), rtol=1e-4, atol=1e-5)
