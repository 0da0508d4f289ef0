"""Two processes train as one does, whether they hold whole models (DDP) or pieces of one (FSDP2)."""

from pathlib import Path

import pytest

from tests.tiny_runs import Run, train_without_trainer

CASES = [("2025", False), ("2025", True), ("2026", False), ("2026", True)]
SAVING = {"save_strategy": "steps", "save_steps": 10}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Train on one process, each run once."""
    runs = {}

    def train(*case) -> Run:
        if case not in runs:
            runs[case] = train_without_trainer(tmp_path_factory.mktemp("alone"), *case)
        return runs[case]

    return train


def assert_same(run: Run, reference: Run) -> None:
    assert len(run.losses) == len(reference.losses)
    assert run.losses == pytest.approx(reference.losses, rel=1e-5)
    for name, start in reference.start.items():
        moved = (reference.end[name] - start).norm()
        assert moved > 0, name
        assert (run.end[name] - reference.end[name]).norm() / moved < 1e-3, name


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("generation", "packing"), CASES)
def test_two_processes_train_as_one(two_processes, alone, tmp_path, generation, packing, sharding):
    reference = alone(generation, packing)
    for run in two_processes.run(train_without_trainer, tmp_path, generation, packing, sharding):
        assert_same(run, reference)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_adamw_alone_trains_on_two_processes_as_on_one(two_processes, alone, tmp_path, sharding):
    reference = alone("2026", True, "ddp", "adamw")
    for run in two_processes.run(train_without_trainer, tmp_path, "2026", True, sharding, "adamw"):
        assert_same(run, reference)


def train_and_resume(folder: Path, sharding: str) -> Run:
    """Train with a checkpoint in the middle, and once more from there."""
    train_without_trainer(folder, "2026", True, sharding, **SAVING)
    return train_without_trainer(folder, "2026", True, sharding, resume_from_checkpoint=str(folder / "checkpoint-10"))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_resume_from_their_checkpoint(two_processes, alone, tmp_path, sharding):
    reference = alone("2026", True)
    for run in two_processes.run(train_and_resume, tmp_path, sharding):
        assert_same(run, reference)


def test_one_process_resumes_what_two_have_saved_and_the_other_way_round(two_processes, alone, tmp_path):
    reference = alone("2026", True)
    two_processes.run(train_without_trainer, tmp_path / "two", "2026", True, **SAVING)
    resumed = train_without_trainer(tmp_path / "two", "2026", True, resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-10"))
    assert_same(resumed, reference)
    train_without_trainer(tmp_path / "one", "2026", True, **SAVING)
    checkpoint = str(tmp_path / "one" / "checkpoint-10")
    for run in two_processes.run(train_without_trainer, tmp_path / "one", "2026", True, resume_from_checkpoint=checkpoint):
        assert_same(run, reference)
