"""On any device, with a stand-in for CUDA graphs: which batches are captured, and what becomes of their gradients."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from chatsft import captured_step, gradients
from chatsft.captured_step import WARM_UP, CapturedStep
from chatsft.recipe import RecipeError
from chatsft.trainer import ChatTrainer
from tests.test_plan import CHECKPOINTING
from tests.tiny_training import build_rows, build_trainer, losses


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
    assert "compile_scope 'step' captures chatsft's text models on GPUs that hold all of one" in caplog.text


class CapturedTrainer(ChatTrainer):
    """Capture steps on the CPU."""

    def _captured_step(self) -> CapturedStep:
        params = list(self.model.parameters())
        captured_step.record = Recorder(params)
        return CapturedStep(partial(super(ChatTrainer, self).compute_micro_batch, self.model), params)


def train_captured(folder: Path, kind: type[ChatTrainer]) -> tuple[list[float], list[torch.Tensor], int]:
    """Train on rows of one length, and count the graphs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gradients.BUCKET_BYTES = 10_000  # several parts
    rows = [row for row in build_rows(9 * 48) if len(row["input_ids"]) == 8]
    with patch.object(captured_step, "record", None):
        trainer = build_trainer(folder, rows, trainer_class=kind, torch_compile=True, compile_scope="step")
        trainer.model.model.memory_budget = None
        for layer in trainer.model.model.layers:
            layer.memory_budget = None  # nothing is compiled here
        trainer.train()
        num_graphs = getattr(captured_step.record, "num_recorded", 0)
    return losses(trainer), [param.detach().clone() for param in trainer.model.parameters()], num_graphs


def test_two_processes_that_capture_their_steps_train_as_they_do_without(two_processes, tmp_path):
    captured = two_processes.run(train_captured, tmp_path, CapturedTrainer)
    plain = two_processes.run(train_captured, tmp_path, ChatTrainer)
    for (losses_captured, weights_captured, num_graphs), (losses_plain, weights_plain, _) in zip(captured, plain, strict=True):
        assert num_graphs == 1
        assert losses_captured == losses_plain
        assert all(map(torch.equal, weights_captured, weights_plain))


def test_layers_that_are_computed_again_cannot_be_captured(tmp_path):
    with pytest.raises(RecipeError, match="compile_scope is 'step', but a CUDA graph cannot hold layers that are computed again"):
        build_trainer(tmp_path, build_rows(8), torch_compile=True, compile_scope="step", **{CHECKPOINTING: True})
