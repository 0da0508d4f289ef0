"""A run prints its own lines alone."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from chatsft import callbacks


class NotebookTable(TrainerCallback):
    """Stands for transformers' table, which it shows in notebooks in place of the progress bar."""


@pytest.mark.parametrize("progress", [ProgressCallback, NotebookTable])
@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_what_trainer_prints_by_itself_is_taken_away(monkeypatch, tmp_path, progress, disable_tqdm):
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", progress)
    monkeypatch.setattr(callbacks, "DEFAULT_PROGRESS_CALLBACK", progress)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=disable_tqdm)
    trainer = Trainer(torch.nn.Linear(1, 1), args)
    before = {type(callback) for callback in trainer.callback_handler.callbacks}
    callbacks.leave_console(trainer)
    after = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert before - after == {PrinterCallback if disable_tqdm else progress}
