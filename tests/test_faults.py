"""A step that meets a fault on one process is left out on all, as if its rows had not been there."""

import shutil
import subprocess
import sys
import time
import weakref

import pytest
import torch

from chatsft.checkpoints import find_damage
from chatsft.faults import TrainingFault
from tests.fault_cases import (
    CASES,
    SHARDED_CASES,
    resume,
    run_case,
    run_on_a_full_disk,
    run_on_after_sigterm,
    run_sharded_case,
    run_sharded_on_after_sigterm,
    run_until_sigterm,
    watch_averaging,
)
from tests.tiny_training import (
    FaultyTrainer,
    build_rows,
    build_trainer,
    everything_that_an_update_changes,
    losses,
    run_out_of_memory,
    skipped,
)

WORDS = {"loss": "a loss that is not finite", "gradient": "a gradient that is not finite", "memory": "out of memory"}


AS_MUCH_AS_TWO = {"gradient_accumulation_steps": 4, "generation": 2026}
"""What makes one process take as much at a time as two do."""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> list[float]:
    """The losses of one process that nobody interrupts."""
    trainer = build_trainer(tmp_path_factory.mktemp("one"), build_rows(48), **AS_MUCH_AS_TWO)
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_fault_on_one_process_equals_a_run_without_the_rows_of_its_step(two_processes, tmp_path, case):
    fault, step, _, process, _ = case
    for result in two_processes.run(run_case, tmp_path, *case):
        check(result, step)
        rows = list(range(8 * step, 8 * step + 8))
        word = next(words for part, words in WORDS.items() if part in fault)
        where = ["0", "1"] if "gradient" in fault else [str(process)]  # averaged, the gradients are the same on both
        assert result["skipped"] == [{"skipped_step": dict.fromkeys(where, word), "rows": rows, "conversations": [], "step": step + 1}]


def test_gradients_are_sent_while_the_backward_pass_computes(two_processes, tmp_path):
    for parts in two_processes.run(watch_averaging, tmp_path):
        early, every = zip(*parts, strict=True)
        assert early[0] == 0  # the order is not known yet
        assert early[1:] == every[1:]
        assert min(every) > 3


@pytest.mark.parametrize("case", SHARDED_CASES, ids=lambda case: "-".join(map(str, case)))
def test_so_does_a_nan_where_the_model_is_sharded(two_processes, tmp_path, case):
    for result in two_processes.run(run_sharded_case, tmp_path, *case):
        check(result, step=case[1])
        assert len(result["skipped"]) == 1


def check(result: dict, step: int) -> None:
    faulty, reference = result["losses"]
    assert faulty == reference
    assert len(faulty) == 5
    assert result["is_equal"]
    assert result["count"] == [0] * step + [1] * (6 - step)
    assert result["global_step"] == 6


def test_sigterm_on_one_process_stops_both_and_one_process_goes_on(two_processes, one_process, tmp_path):
    assert two_processes.run(run_until_sigterm, tmp_path) == [{"ending": "SIGTERM", "global_step": 3}] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert find_damage(tmp_path / "checkpoint-3") is None
    trainer = build_trainer(tmp_path, build_rows(48), **AS_MUCH_AS_TWO)
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == pytest.approx(one_process, rel=1e-5)


def test_two_processes_go_on_after_sigterm_with_the_same_trainer(two_processes, tmp_path):
    expected = {"stopped_at": 4, "ending": None, "skipped": [(2, list(range(8, 16))), (8, list(range(24, 28)))], "num_steps": {6}}
    assert two_processes.run(run_on_after_sigterm, tmp_path) == [expected] * 2


def test_a_trainer_whose_model_is_sharded_does_not_train_again(two_processes, tmp_path):
    for error in two_processes.run(run_sharded_on_after_sigterm, tmp_path):
        assert error.endswith("Make a new trainer.")


def test_a_full_disk_on_one_process_leaves_both_their_earlier_checkpoint(two_processes, tmp_path):
    assert two_processes.run(run_on_a_full_disk, tmp_path) == [[4]] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-6"]
    assert [find_damage(path) for path in tmp_path.iterdir()] == [None, None]


def test_two_processes_go_on_with_what_one_has_left(two_processes, one_process, tmp_path):
    build_trainer(tmp_path, build_rows(48), save_strategy="steps", save_steps=3, **AS_MUCH_AS_TWO).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    for result in two_processes.run(resume, tmp_path):
        assert result == pytest.approx(one_process, rel=1e-5)


@pytest.mark.parametrize("logging_steps", [1, 4])
@pytest.mark.parametrize("fault", ["nan loss", "no memory backward"])
def test_a_fault_on_a_single_process_leaves_its_step_out(tmp_path, fault, logging_steps, caplog):
    rows = build_rows(24)
    trainer = build_trainer(tmp_path, rows, trainer_class=FaultyTrainer, logging_steps=logging_steps)
    trainer.faults = {(1, 1, 0): fault}
    trainer.train()
    fewer = {"max_steps": 5, "skipped_updates": (1,), "logging_steps": max(1, logging_steps - 1)}
    reference = build_trainer(tmp_path, rows[:4] + rows[8:], **fewer)
    reference.train()
    assert losses(trainer)[: 6 // logging_steps] == losses(reference)[: 6 // logging_steps]
    pairs = zip(everything_that_an_update_changes(trainer), everything_that_an_update_changes(reference), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert "Step 00001 was left out on every process" in caplog.text
    assert "Its rows were 4 to 7" in caplog.text


def test_the_logged_loss_is_the_mean_of_the_steps_that_were_made(tmp_path):
    each = build_trainer(tmp_path, build_rows(24), trainer_class=FaultyTrainer)
    each.faults = {(1, 0, 0): "nan loss"}
    each.train()
    together = build_trainer(tmp_path, build_rows(24), trainer_class=FaultyTrainer, logging_steps=3)
    together.faults = each.faults
    together.train()
    single = losses(each)
    assert losses(together) == pytest.approx([sum(single[:2]) / 2, sum(single[2:]) / 3])


def test_what_a_failed_micro_batch_held_is_freed(tmp_path):
    held = []

    class Trainer(FaultyTrainer):
        def compute_loss(self, *args, **kwargs):
            assert [activation() for activation in held] == [None] * len(held)
            activations = torch.zeros(1000)
            if self.state.global_step == 1:
                held.append(weakref.ref(activations))
                run_out_of_memory()
            return super().compute_loss(*args, **kwargs)

    trainer = build_trainer(tmp_path, build_rows(24), trainer_class=Trainer)
    trainer.faults = {}
    trainer.train()
    assert len(held) == 1
    assert len(skipped(trainer)) == 1


def test_an_error_that_is_no_fault_of_a_batch_ends_the_run(tmp_path):
    class Trainer(FaultyTrainer):
        def compute_loss(self, *args, **kwargs):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        build_trainer(tmp_path, build_rows(24), trainer_class=Trainer).train()


def test_too_many_faults_in_a_row_end_the_run_with_a_checkpoint(tmp_path):
    trainer = build_trainer(tmp_path, build_rows(40), trainer_class=FaultyTrainer, max_steps=10, max_skipped_in_a_row=2)
    trainer.faults = {(step, 0, 0): "nan loss" for step in (1, 2, 4, 5, 6, 7)}
    with pytest.raises(TrainingFault, match="3 steps in a row were left out"):
        trainer.train()
    assert trainer.state.global_step == 7
    healed = build_trainer(tmp_path, build_rows(40), trainer_class=FaultyTrainer, max_steps=10)
    healed.faults = {}
    healed.train(resume_from_checkpoint=True)
    assert healed.state.log_history[-2]["skipped_steps"] == 5
    assert len(losses(healed)) == 5


def test_the_host_learns_of_a_fault_a_step_later_where_nothing_is_logged(tmp_path):
    trainer = build_trainer(tmp_path, build_rows(40), trainer_class=FaultyTrainer, max_steps=10, max_skipped_in_a_row=2, logging_steps=10)
    trainer.faults = {(step, 0, 0): "nan loss" for step in (1, 2, 4, 5, 6)}
    with pytest.raises(TrainingFault, match="3 steps in a row were left out"):
        trainer.train()
    assert trainer.state.global_step == 8
    assert [entry["step"] for entry in skipped(trainer)] == [2, 3, 5, 6, 7]
    assert skipped(trainer)[-1]["rows"] == [24, 25, 26, 27]


@pytest.mark.slow
def test_running_out_of_memory_in_a_sharded_model_ends_the_run_within_a_minute():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.sharded_out_of_memory"]
    start = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert time.monotonic() - start < 60
    assert finished.returncode != 0
    assert "error: out of memory in a step whose model is sharded over processes (CUDA out of memory" in finished.stderr
    assert "go on from the last checkpoint with resume_from_checkpoint=true" in finished.stderr
