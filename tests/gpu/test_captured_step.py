"""On a GPU: a run whose micro-batches are replayed from CUDA graphs is the run whose kernels are launched one by one."""

import pytest
import torch

from chatsft.arguments import ChatArguments
from chatsft.captured_step import WARM_UP
from chatsft.data.collator import FlatteningCollator
from chatsft.model.packed_attention import prepare_attention
from chatsft.trainer import ChatTrainer
from tests.data.test_collator import row
from tests.gpu.test_attention import build
from tests.tiny_training import everything_that_an_update_changes, losses

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


def train(folder, generation: str, **settings) -> ChatTrainer:
    torch._dynamo.reset()
    model = build(generation, "varlen")
    prepare_attention(model, "varlen", packing=True)
    generator = torch.Generator().manual_seed(0)
    rows = [
        row(torch.randint(0, 512, (n,), generator=generator).tolist(), torch.randint(0, 512, (300 - n,), generator=generator).tolist())
        for n in range(20, 276, 2)
    ]
    args = ChatArguments(
        output_dir=folder,
        optimizer=f"muon_{generation}",
        per_device_train_batch_size=4,
        max_steps=12,
        bf16=True,
        torch_compile=True,
        disable_tqdm=True,
        dataloader_num_workers=1,
        eval_strategy="steps",
        eval_steps=7,
        **settings,
    )
    collator = FlatteningCollator(320, 0, 2, 1024)
    trainer = ChatTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows[:4], data_collator=collator)
    trainer.train()
    return trainer


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"loss_average": "micro_batch"}], ids=str)
def test_a_captured_run_is_the_run_that_is_not_captured(tmp_path, generation, settings):
    captured = train(tmp_path / "step", generation, compile_scope="step", **settings)
    plain = train(tmp_path / "layer", generation, compile_scope="layer", **settings)
    assert captured.captured.graphs
    assert sum(captured.captured.seen.values()) <= 2 * (WARM_UP + 1)
    assert losses(captured) == pytest.approx(losses(plain), rel=1e-4)
    for one, other in zip(everything_that_an_update_changes(captured), everything_that_an_update_changes(plain), strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-2)
