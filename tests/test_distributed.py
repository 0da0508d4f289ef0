"""Two processes train as one does, whether they hold whole models (DDP) or pieces of one (FSDP2)."""

import pytest

from tests.tiny_runs import Run, train_without_trainer

CASES = [("2025", False), ("2025", True), ("2026", False), ("2026", True)]


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
