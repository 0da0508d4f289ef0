"""On a GPU: a run replayed from CUDA graphs is the run whose kernels are launched one by one, and neither waits for the GPU in a step."""

import pytest
import torch
from transformers import TrainerCallback

from chatsft.arguments import ChatArguments
from chatsft.captured_step import CapturedStep
from chatsft.data.collator import FlatteningCollator
from chatsft.model.packed_attention import prepare_attention
from chatsft.trainer import ChatTrainer
from tests.data.test_collator import row
from tests.gpu.test_attention import build
from tests.tiny_training import everything_that_an_update_changes, losses

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


def train(folder, generation: str, callbacks: list[TrainerCallback] | None = None, **settings) -> ChatTrainer:
    torch._dynamo.reset()
    model = build(generation, "varlen")
    prepare_attention(model, "varlen", packing=True)
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randint(0, 512, (n,), generator=generator).tolist() for n in (first, 300 - first)] for first in range(20, 276, 2)]
    rows = [row(*pair) for pair in pairs]
    args = ChatArguments(
        output_dir=folder,
        optimizer=f"muon_{generation}",
        per_device_train_batch_size=4,
        max_steps=12,
        bf16=True,
        torch_compile=True,
        disable_tqdm=True,
        dataloader_num_workers=1,
        **settings,
    )
    collator = FlatteningCollator(320, 0, 2, 1024)
    trainer = ChatTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows[:4], data_collator=collator, callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.fixture
def num_graphs(monkeypatch) -> list[int]:
    """How many graphs a run had at its end."""
    numbers, release = [], CapturedStep.release

    def count(step: CapturedStep) -> None:
        numbers.append(len(step.graphs))
        release(step)

    monkeypatch.setattr(CapturedStep, "release", count)
    return numbers


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"loss_average": "micro_batch"}], ids=str)
def test_a_captured_run_is_the_run_that_is_not_captured(tmp_path, generation, settings, num_graphs):
    evaluation = {"eval_strategy": "steps", "eval_steps": 7}
    captured = train(tmp_path / "step", generation, compile_scope="step", **evaluation, **settings)
    plain = train(tmp_path / "layer", generation, compile_scope="layer", **evaluation, **settings)
    assert num_graphs == [1]
    assert losses(captured) == pytest.approx(losses(plain), rel=1e-4)
    for one, other in zip(everything_that_an_update_changes(captured), everything_that_an_update_changes(plain), strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-2)


class NoWaiting(TrainerCallback):
    """Make it an error, in two steps, that the host waits for the device."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("error" if state.global_step in (8, 9) else "default")


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("scope", ["layer", "step"])
def test_no_step_waits_for_the_device(tmp_path, generation, scope):
    try:
        trainer = train(tmp_path, generation, [NoWaiting()], compile_scope=scope, logging_steps=12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(losses(trainer)) == 1
