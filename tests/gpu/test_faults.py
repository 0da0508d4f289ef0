"""On a GPU: a batch that does not fit in its memory, or has a NaN, is left out, and its memory is free again."""

import pytest
import torch

from tests.tiny_training import FaultyTrainer, build_rows, build_trainer, everything_that_an_update_changes, losses

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


class Watched(FaultyTrainer):
    """Note the memory in use when each step begins."""

    def get_batch_samples(self, *args):
        self.memory.append(torch.cuda.memory_allocated())
        return super().get_batch_samples(*args)


@pytest.mark.parametrize("generation", [2025, 2026])
@pytest.mark.parametrize("fault", ["no GPU memory forward", "no GPU memory backward", "nan loss", "nan gradient"])
def test_a_fault_equals_a_run_without_the_rows_of_its_step(tmp_path, fault, generation):
    rows, options = build_rows(24), {"use_cpu": False, "generation": generation}
    trainer = build_trainer(tmp_path, rows, trainer_class=Watched, **options)
    trainer.faults, trainer.memory = {(2, 1, 0): fault}, []
    trainer.train()
    reference = build_trainer(tmp_path, rows[:8] + rows[12:], max_steps=5, skipped_updates=(2,), **options)
    reference.train()
    assert losses(trainer) == pytest.approx(losses(reference), rel=1e-3)
    pairs = zip(everything_that_an_update_changes(trainer), everything_that_an_update_changes(reference), strict=True)
    assert all(torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3) for a, b in pairs)
    assert trainer.memory[3] <= trainer.memory[2] + 2**16
