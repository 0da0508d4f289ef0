"""ChatTrainer follows nanochat's recorded runs, and its own settings agree with each other."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from chatsft.arguments import ChatArguments
from chatsft.model.nanochat_checkpoint import load_nanochat_model, our_name
from chatsft.optim.schedule import lr_multiplier
from chatsft.trainer import ChatTrainer
from tests.model.oracle import FIXTURES, load_json

V2 = FIXTURES / "train_v2"


def collate_recorded_rows(rows: list[dict]) -> dict:
    batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in ("input_ids", "labels", "shift_labels")}
    return batch | {"num_tokens": batch["input_ids"].numel()}


def recorded_rows() -> list[dict]:
    """Turn nanochat's packed inputs and targets into rows; a row is one segment, as nanochat does not keep conversations apart."""
    recorded, rows = load_file(V2 / "packed_rows_main.safetensors"), []
    for step in range(20):
        inputs, targets = recorded[f"inputs_{step:03d}"].long().numpy(), recorded[f"targets_{step:03d}"].long().numpy()
        targets = np.where(targets == -1, -100, targets)
        rows += [{"input_ids": i, "labels": t, "shift_labels": t} for i, t in zip(inputs, targets, strict=True)]
    return rows


def trained_norms(trainer: ChatTrainer) -> dict[str, float]:
    return {name: parameter.double().norm().item() for name, parameter in trainer.model.named_parameters()}


def test_2026_training_gives_nanochats_losses_rates_and_weights(tmp_path):
    recorded = load_json(V2 / "trajectory_main_fp32.json.gz")
    args = ChatArguments(
        output_dir=tmp_path,
        optimizer="muon_2026",
        matrix_lr=0.02,
        embedding_lr=0.3,
        unembedding_lr=0.008,
        scalar_lr=0.5,
        init_lr_frac=0.8,
        muon_precision="float32",
        loss_average="micro_batch",
        per_device_train_batch_size=4,
        max_steps=20,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = load_nanochat_model(FIXTURES / "model_v2")
    trainer = ChatTrainer(model=model, args=args, train_dataset=recorded_rows(), data_collator=collate_recorded_rows)
    # nanochat reads its progress after fetching the next batch, so its schedule runs one batch ahead of the update it belongs to.
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda update: lr_multiplier((update + 2) / 21, warmdown_ratio=0.5))
    trainer.train()
    for step, log in zip(recorded["steps"], trainer.state.log_history, strict=False):
        assert log["loss"] == pytest.approx(step["mean_of_micro_losses"], rel=1e-5), step["step"]
        assert log["lr_multiplier"] == pytest.approx(step["lrm"], abs=1e-12)
        assert log["supervised_tokens"] == sum(step["n_active"])
        rates = {round(value, 12) for key, value in log.items() if key.startswith("lr_") and key != "lr_multiplier"}
        assert rates == {round(group["lr"], 12) for group in step["groups"]}
    final = trained_norms(trainer)
    for name, norm in recorded["steps"][-1]["param_norms_after"].items():
        if name.endswith("wte.weight") or name.startswith(("lm_head", "value_embeds")):
            continue  # nanochat's norm counts the padding rows of the vocabulary, which the model here does not have
        assert final[our_name(name)] == pytest.approx(norm, rel=1e-4), name


def test_the_plain_trainer_trains_and_evaluates_our_model(tmp_path):
    args = TrainingArguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, use_cpu=True, disable_tqdm=True, report_to="none")
    rows = [{"input_ids": [1, 2, n], "labels": [-100, 2, n]} for n in range(3, 11)]
    trainer = Trainer(load_nanochat_model(FIXTURES / "model_v2"), args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 20


def test_a_process_uses_one_gpu(tmp_path):
    args = ChatArguments(output_dir=tmp_path, per_device_train_batch_size=4, use_cpu=True)
    args._n_gpu = 8
    assert args.train_batch_size == 4
