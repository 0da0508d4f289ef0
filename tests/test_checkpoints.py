"""Checkpoints appear whole, are checked, and the last good one stays."""

import json
import logging
from pathlib import Path

import pytest

from chatsft import checkpoints
from chatsft.checkpoints import CheckpointError, choose_checkpoint, find_damage, list_checkpoints, publish, rotate, staging_folder


def write(output: Path, step: int, run: str = "a") -> Path:
    staged = staging_folder(output, step)
    (staged / "inner").mkdir(parents=True)
    (staged / "weights").write_bytes(bytes(range(256)) * step)
    (staged / "inner" / "state").write_text("{}")
    return publish(staged, {"run": run, "step": step, "data": None})


def names(output: Path) -> list[str]:
    return [path.name for path in list_checkpoints(output)]


def test_a_published_checkpoint_lists_every_file(tmp_path):
    checkpoint = write(tmp_path, 1)
    assert checkpoint == tmp_path / "checkpoint-1"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["files"]["weights"] == {
        "bytes": 256,
        "sha256": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
    }
    assert sorted(manifest["files"]) == ["inner/state", "weights"]
    assert find_damage(checkpoint) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_bytes(b"short"), "weights has 5 bytes, but was written with 512"),
        (lambda folder: (folder / "weights").write_bytes(bytes(512)), "weights does not have the checksum"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files'), "no manifest.json that can be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage, message):
    for step in (1, 2):
        write(tmp_path, step)
    damage(tmp_path / "checkpoint-2")
    assert message in find_damage(tmp_path / "checkpoint-2")
    assert choose_checkpoint(tmp_path, True) == tmp_path / "checkpoint-1"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "checkpoint-2 cannot be used" in caplog.text and message in caplog.text


def test_resuming_begins_anew_where_there_is_no_checkpoint_yet(tmp_path, caplog):
    assert choose_checkpoint(tmp_path / "new", True) is None
    assert "the run begins at its first step" in caplog.text


def test_resuming_from_damaged_checkpoints_alone_is_an_error(tmp_path):
    (write(tmp_path, 1) / "weights").write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of checkpoint-1"):
        choose_checkpoint(tmp_path, True)
    with pytest.raises(CheckpointError, match="checkpoint-1 is damaged: weights has 0 bytes"):
        choose_checkpoint(tmp_path, str(tmp_path / "checkpoint-1"))


def test_a_named_checkpoint_is_taken(tmp_path):
    for step in (1, 2):
        write(tmp_path, step)
    assert choose_checkpoint(tmp_path, str(tmp_path / "checkpoint-1")) == tmp_path / "checkpoint-1"
    with pytest.raises(CheckpointError, match=r"names .*none, which is not a folder"):
        choose_checkpoint(tmp_path, str(tmp_path / "none"))


def test_a_new_run_does_not_start_among_the_checkpoints_of_another(tmp_path):
    write(tmp_path, 5)
    with pytest.raises(CheckpointError, match="holds checkpoint-5 of an earlier run"):
        choose_checkpoint(tmp_path, None)


def test_checkpoints_of_different_runs_in_one_folder_are_an_error(tmp_path):
    write(tmp_path, 1, run="a")
    write(tmp_path, 2, run="b")
    with pytest.raises(CheckpointError, match="checkpoint-1 and checkpoint-2 do not belong together"):
        choose_checkpoint(tmp_path, True)


def test_what_was_written_last_counts_and_not_the_highest_step(tmp_path):
    for step in (10, 20, 15):  # somebody went back to 10 and trained on from there
        write(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-15", "checkpoint-20", "checkpoint-10"]
    assert choose_checkpoint(tmp_path, True).name == "checkpoint-15"


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path):
    (write(tmp_path, 1) / "weights").write_bytes(b"damaged")
    assert find_damage(write(tmp_path, 1)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    rotate(tmp_path, 3, best=str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-3", "checkpoint-1"]
    rotate(tmp_path, None, None)
    assert len(names(tmp_path)) == 3
    rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-1"]


def test_rotation_does_not_count_a_broken_checkpoint_as_one_that_is_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "checkpoint-3" / "weights").unlink()
    rotate(tmp_path, 1, best=None)
    assert choose_checkpoint(tmp_path, True).name == "checkpoint-2"


def test_a_half_written_checkpoint_is_cleared_away(tmp_path):
    write(tmp_path, 1)
    (staging_folder(tmp_path, 2)).mkdir(parents=True)
    (staging_folder(tmp_path, 2) / "weights").write_bytes(b"half")
    assert choose_checkpoint(tmp_path, True).name == "checkpoint-1"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_that_only_lacked_its_name_is_taken(tmp_path):
    checkpoint = write(tmp_path, 1)
    staging_folder(tmp_path, 1).parent.mkdir()
    checkpoint.rename(staging_folder(tmp_path, 1))
    assert choose_checkpoint(tmp_path, True) == checkpoint
    assert find_damage(checkpoint) is None


def test_a_failed_write_is_described_in_one_line():
    def fail():
        raise OSError(28, "No space left\non device")

    assert checkpoints.attempt(fail) == "[Errno 28] No space left on device"
    assert checkpoints.attempt(lambda: "result") is None
    with pytest.raises(KeyError):
        checkpoints.attempt({}.popitem)
