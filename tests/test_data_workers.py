"""Batches that other processes make are those that the trainer would make, and none of these processes is a fork of the trainer."""

import os
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from chatsft.arguments import ChatArguments
from tests.tiny_training import build_rows, build_trainer, losses


class TracedRows(Dataset):
    """Rows that note, by a file, who has started the process that reads them."""

    def __init__(self, folder: Path):
        self.rows, self.folder = build_rows(24), folder
        folder.mkdir()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        (self.folder / str(os.getppid())).touch()
        return self.rows[index]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_workers_read_what_the_trainer_would_read_and_are_not_forked_from_it(tmp_path):
    alone = build_trainer(tmp_path / "alone", TracedRows(tmp_path / "read_alone"))
    alone.train()
    helped = build_trainer(tmp_path / "helped", TracedRows(tmp_path / "read_helped"), dataloader_num_workers=1)
    helped.train()
    assert losses(helped) == losses(alone)
    assert [path.name for path in (tmp_path / "read_alone").iterdir()] == [str(os.getppid())]
    parents = {int(path.name) for path in (tmp_path / "read_helped").iterdir()}
    assert parents and not parents & {os.getpid(), os.getppid()}


def test_a_start_method_that_is_asked_for_is_taken(tmp_path):
    asked = {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "fork"}
    assert ChatArguments(output_dir=tmp_path, use_cpu=True, **asked).dataloader_multiprocessing_context == "fork"
    assert ChatArguments(output_dir=tmp_path, use_cpu=True).dataloader_multiprocessing_context is None
