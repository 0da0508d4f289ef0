"""On any device, with a stand-in for CUDA graphs: which batches are captured, and what becomes of their gradients."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from chatsft import captured_step
from chatsft.captured_step import WARM_UP, CapturedStep
from chatsft.recipe import RecipeError
from tests.test_plan import CHECKPOINTING
from tests.tiny_training import build_rows, build_trainer


class Recorder:
    """Run a function again, into the tensors that its first run wrote, as the replay of a CUDA graph does."""

    def __init__(self, params: list[nn.Parameter]):
        self.params, self.num_recorded, self.step = params, 0, None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        run()
        written = [param.grad for param in self.params]

        def launch() -> None:
            for param in self.params:
                param.grad = None
            run()
            for param, gradient in zip(self.params, written, strict=True):
                if gradient is not None:
                    gradient.copy_(param.grad)

        return launch


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})


@pytest.fixture
def recorder(model, monkeypatch) -> Recorder:
    recorder = Recorder(list(model.parameters()))
    monkeypatch.setattr(captured_step, "record", recorder)
    return recorder


def compute_with(model: nn.Module) -> Callable:
    def compute(inputs: dict, divisor: torch.Tensor | None) -> torch.Tensor:
        loss = (model["used"](inputs["x"]) * inputs["factor"]).square().sum() / (1 if divisor is None else divisor)
        loss.backward()
        return loss.detach()

    return compute


def batches(number: int, rows: int = 4) -> list[tuple[dict, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [({"x": torch.randn(rows, 3, generator=generator), "factor": 2}, torch.tensor(float(i + 1))) for i in range(number)]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_losses_and_gradients_are_those_of_steps_that_are_not_captured(model, recorder, micro_batches):
    plain = copy.deepcopy(model)
    step, compute = CapturedStep(compute_with(model), recorder.params), compute_with(plain)
    for number, (inputs, divisor) in enumerate(batches(12)):
        if number % micro_batches == 0:
            model.zero_grad()
            plain.zero_grad()
        assert torch.equal(step(inputs, divisor, micro_batches), compute(inputs, divisor))
        assert torch.equal(model["used"].weight.grad, plain["used"].weight.grad)
        assert model["unused"].weight.grad is None
    assert recorder.num_recorded == 1


def test_a_gradient_that_the_graph_does_not_write_is_kept(model, recorder):
    step = CapturedStep(compute_with(model), recorder.params)
    model["unused"].weight.grad = torch.ones(3, 3)
    for inputs, divisor in batches(WARM_UP + 2):
        step(inputs, divisor, 1)
    assert torch.equal(model["unused"].weight.grad, torch.ones(3, 3))


def test_what_the_graph_depends_on_is_captured_by_itself(model, recorder):
    step = CapturedStep(compute_with(model), recorder.params)
    cases = [(4, 2, 1), (2, 2, 1), (4, 3, 1), (4, 2, 8)]  # rows, a plain number among the inputs, accumulation steps
    for rows, factor, accumulation_steps in cases:
        for inputs, divisor in batches(WARM_UP + 2, rows):
            model.zero_grad()
            loss = step({**inputs, "factor": factor}, divisor, accumulation_steps)
            assert loss == (model["used"](inputs["x"]) * factor).square().sum() / divisor
    assert recorder.num_recorded == len(cases)


def test_shapes_beyond_the_most_that_are_captured_run_as_they_are(model, recorder, monkeypatch):
    monkeypatch.setattr(captured_step, "MAX_GRAPHS", 1)
    step = CapturedStep(compute_with(model), recorder.params)
    for rows in (4, 2):
        for inputs, divisor in batches(WARM_UP + 2, rows):
            step(inputs, divisor, 1)
    assert recorder.num_recorded == 1


def test_without_memory_for_a_graph_steps_run_as_they_are(model, monkeypatch, caplog):
    def run_out_of_memory(run: Callable) -> None:
        run()
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(captured_step, "record", run_out_of_memory)
    plain = copy.deepcopy(model)
    step, compute = CapturedStep(compute_with(model), list(model.parameters())), compute_with(plain)
    for inputs, divisor in batches(WARM_UP + 2):
        assert torch.equal(step(inputs, divisor, 1), compute(inputs, divisor))
    assert torch.equal(model["used"].weight.grad, plain["used"].weight.grad)
    assert caplog.text.count("no memory is left to capture a step") == 1


def test_what_was_released_is_captured_anew(model, recorder):
    step = CapturedStep(compute_with(model), recorder.params)
    for _ in range(2):
        for inputs, divisor in batches(WARM_UP + 2):
            step(inputs, divisor, 1)
        step.release()
    assert recorder.num_recorded == 2


def test_without_a_gpu_nothing_is_captured(tmp_path, caplog):
    trainer = build_trainer(tmp_path, build_rows(8), torch_compile=True, compile_scope="step")
    assert trainer.captured is None
    assert "compile_scope 'step' captures chatsft's text models on one GPU" in caplog.text


def test_layers_that_are_computed_again_cannot_be_captured(tmp_path):
    with pytest.raises(RecipeError, match="compile_scope is 'step', but a CUDA graph cannot hold layers that are computed again"):
        build_trainer(tmp_path, build_rows(8), torch_compile=True, compile_scope="step", **{CHECKPOINTING: True})
