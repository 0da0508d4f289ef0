"""On two GPUs, whole models (DDP) and pieces of one (FSDP2, as fsdp2.yaml launches it): losses, faults on one of them, checkpoints.

python -m pytest tests/gpu/test_two_gpus.py -m gpu
"""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

from tests.benchmarks.scaling import SAME_STEPS, TOLERANCE, train_for_losses
from tests.fault_cases import ROWS, forget_state, run_case
from tests.test_accelerate_configs import launch_environment
from tests.tiny_training import FaultyTrainer, build_rows, build_trainer, losses
from tests.two_processes import JoinedProcesses

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
CASES = [
    ("ddp", "no GPU memory forward", 0, 1, 1, 2026),
    ("ddp", "no GPU memory backward", 3, 1, 0, 2025),
    ("ddp", "no memory midway", 4, 0, 1, 2026),
    ("ddp", "nan gradient", 2, 0, 0, 2025),
    ("fsdp2", "nan loss", 2, 0, 1, 2026),
    ("fsdp2", "nan gradient", 3, 1, 0, 2025),
]
ON_GPU = {"use_cpu": False}


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[JoinedProcesses]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with JoinedProcesses("nccl") as processes:
        yield processes


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[JoinedProcesses]:
    with JoinedProcesses("nccl", 1) as processes:
        yield processes


def launched_with(config: str, precision: str = "no") -> mock._patch_dict:
    """Set what `accelerate launch` would have set for a configuration, but for its precision."""
    environment = launch_environment(config, "--mixed_precision", precision)
    return mock.patch.dict(os.environ, {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))})


def train_in_bfloat16(config: str, generation: str) -> list[float]:
    with launched_with(config, "bf16"):
        return train_for_losses(generation)["losses"]


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_losses_of_two_gpus_are_those_of_one(one_gpu, two_gpus, config, generation):
    (alone,) = one_gpu.run(train_in_bfloat16, "ddp", generation)
    for losses_of_two in two_gpus.run(train_in_bfloat16, config, generation):
        assert len(alone) == SAME_STEPS
        assert losses_of_two == pytest.approx(alone, abs=TOLERANCE)


def run_fault(folder: Path, config: str, *case) -> dict:
    with launched_with(config):
        return run_case(folder, *case, tolerance=1e-2, **ON_GPU)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_fault_on_one_gpu_equals_a_run_without_the_rows_of_its_step(two_gpus, tmp_path, case):
    for result in two_gpus.run(run_fault, tmp_path, *case):
        faulty, reference = result["losses"]
        assert len(faulty) == 5
        assert faulty == pytest.approx(reference, rel=1e-3)
        assert result["is_equal"]
        assert [log["step"] for log in result["skipped"]] == [case[2] + 1]


def run_and_resume(folder: Path, config: str) -> dict:
    """Train with checkpoints, one of a step that is left out, and once more from there."""
    with launched_with(config):
        runs = []
        for checkpoint in (None, str(folder / "checkpoint-3")):
            forget_state()
            options = {"generation": 2026, "save_strategy": "steps", "save_steps": 3, **ON_GPU}
            trainer = build_trainer(folder, build_rows(ROWS), trainer_class=FaultyTrainer, **options)
            trainer.faults = {(2, 0, 1): "nan loss"}
            trainer.train(resume_from_checkpoint=checkpoint)
            runs.append(losses(trainer))
        is_sharded = all(isinstance(param, DTensor) for param in trainer.model.parameters())
        return {"runs": runs, "is_sharded": is_sharded}


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_two_gpus_resume_from_their_checkpoint(two_gpus, tmp_path, config):
    for result in two_gpus.run(run_and_resume, tmp_path, config):
        straight, resumed = result["runs"]
        assert len(straight) == 5
        assert resumed == pytest.approx(straight, rel=1e-3)
        assert result["is_sharded"] == (config == "fsdp2")
