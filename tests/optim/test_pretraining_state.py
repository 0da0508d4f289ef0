"""Fine-tuning goes on with the momenta of nanochat's pretraining, as nanochat's own does."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR

from chatsft.arguments import ChatArguments
from chatsft.model.nanochat_checkpoint import CheckpointError, load_nanochat_model, our_name
from chatsft.optim.pretraining_state import read_pretraining_state
from chatsft.recipe import load_recipe
from chatsft.train import train
from chatsft.trainer import ChatTrainer
from chatsft.warm_start import WarmStart
from tests.fault_cases import forget_state
from tests.model.oracle import FIXTURES, load_json
from tests.tiny_runs import ShardedTrainer

WARM = FIXTURES / "warm_start"
PARITY = Path(__file__).parents[2] / "recipes" / "parity.yaml"
RECORDED = load_json(WARM / "trajectory.json.gz")


def recorded_rows() -> list[dict]:
    """Return nanochat's packed rows, two a micro-batch; a row is one segment, as nanochat does not keep conversations apart."""
    tensors, rows = load_file(WARM / "packed_rows.safetensors"), []
    micro_batches = [crcs for step in RECORDED["steps"] for crcs in zip(step["inputs_crc"], step["targets_crc"], strict=True)]
    for number, crcs in enumerate(micro_batches):
        inputs, targets = tensors[f"inputs_{number:03d}"].int().numpy(), tensors[f"targets_{number:03d}"].long().numpy()
        assert (zlib.crc32(inputs.tobytes()), zlib.crc32(targets.tobytes())) == crcs
        targets = np.where(targets == -1, -100, targets)
        rows += [{"input_ids": i.astype(np.int64), "labels": t} for i, t in zip(inputs, targets, strict=True)]
    return rows


def collate(rows: list[dict]) -> dict:
    ids, targets = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("input_ids", "labels"))
    return {"input_ids": ids, "labels": targets, "shift_labels": targets, "num_tokens": ids.numel()}


def build_trainer(output_dir: Path, kind: type = ChatTrainer, **settings) -> ChatTrainer:
    args = ChatArguments(
        output_dir=output_dir,
        optimizer="muon_2026",
        matrix_lr=0.02,
        embedding_lr=0.3,
        unembedding_lr=0.008,
        init_lr_frac=0.8,
        muon_precision="float32",
        loss_average="micro_batch",
        max_steps=6,
        use_cpu=True,
        disable_tqdm=True,
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **settings},
    )
    return kind(
        model=load_nanochat_model(WARM), args=args, train_dataset=recorded_rows(), data_collator=collate, callbacks=[WarmStart(WARM, 0)]
    )


def test_a_warm_start_gives_nanochats_losses_rates_and_weights(tmp_path):
    multipliers = [step["lrm"] for step in RECORDED["steps"]]
    trainer = build_trainer(tmp_path, weight_decay=0.0123)  # nanochat's run takes pretraining's decay over, without saying so
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda update: multipliers[min(update, 5)])  # the last below zero
    norms = []

    class Recorder(WarmStart):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            norms.append({name: parameter.detach().double().norm().item() for name, parameter in model.named_parameters()})

    trainer.add_callback(Recorder(WARM, 0))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for step, log, ours in zip(RECORDED["steps"], logs, norms, strict=True):
        assert log["loss"] == pytest.approx(step["mean_of_micro_losses"], rel=1e-5), step["step"]
        assert log["supervised_tokens"] == sum(step["n_active"])
        rates = {round(value, 12) for key, value in log.items() if key.startswith("lr_") and key != "lr_multiplier"}
        assert rates == {round(group["lr"], 12) for group in step["groups"]}
        for name, norm in step["param_norms_after"].items():
            if not name.startswith(("transformer.wte", "lm_head", "value_embeds")):  # whose padding rows nanochat's norm counts
                tolerance = 1e-3 if "lambda" in name else 1e-4  # few numbers, whose gradients are long sums that nearly cancel
                assert ours[our_name(name)] == pytest.approx(norm, rel=tolerance), name


def test_a_cold_start_gives_other_losses(tmp_path):
    trainer = build_trainer(tmp_path, weight_decay=0.0123)
    trainer.remove_callback(WarmStart)
    trainer.train()
    loss = next(log["loss"] for log in trainer.state.log_history if log["step"] == 2)
    assert loss != pytest.approx(RECORDED["steps"][1]["mean_of_micro_losses"], rel=1e-3)


def test_the_groups_keep_what_the_recipe_says(tmp_path):
    trainer = build_trainer(tmp_path)
    trainer.train()
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert groups["matrices"]["weight_decay"] == 0.0
    assert groups["matrices"]["num_steps"] == 6
    assert trainer.optimizer.state[trainer.model.lm_head.weight]["step"].item() == 3 + 6


def test_a_resumed_run_goes_on_with_its_own_momenta(tmp_path):
    whole = build_trainer(tmp_path / "whole")
    whole.train()
    build_trainer(tmp_path / "cut", save_strategy="steps", save_steps=3).train()
    resumed = build_trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def train_on_two(output_dir: Path, kind: type) -> list[float]:
    forget_state()
    trainer = build_trainer(output_dir, kind, per_device_train_batch_size=1)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("kind", [ChatTrainer, ShardedTrainer])
def test_two_processes_start_as_warm_as_one(two_processes, tmp_path, kind):
    one = build_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    one.train()
    losses = [log["loss"] for log in one.state.log_history if "loss" in log]
    for result in two_processes.run(train_on_two, tmp_path, kind):
        assert result == pytest.approx(losses, rel=1e-5)


def cut_into(folder: Path, num_ranks: int) -> None:
    """Write the recorded state as so many processes of nanochat's pretraining would have."""
    whole = torch.load(WARM / "optim_000000_rank0.pt", weights_only=True)
    for rank in range(num_ranks):
        state = {
            number: {key: cut(key, value, rank, num_ranks) for key, value in entry.items()} for number, entry in whole["state"].items()
        }
        torch.save({**whole, "state": state}, folder / f"optim_000000_rank{rank}.pt")


def cut_entry(entry: dict, rank: int, num_ranks: int) -> dict:
    return {key: cut(key, value, rank, num_ranks) for key, value in entry.items()}


def cut(key: str, value, rank: int, num_ranks: int):
    if key == "step" or (key.startswith("exp_avg") and value.numel() < 1024):
        return value
    size = -(-len(value) // num_ranks)
    padded = torch.cat([value, value.new_zeros(size * num_ranks - len(value), *value.shape[1:])])
    return padded[rank * size : (rank + 1) * size].clone()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_files_of_several_processes_give_the_state_of_one(tmp_path, num_ranks):
    cut_into(tmp_path, num_ranks)
    model = load_nanochat_model(WARM)
    one, several = (read_pretraining_state(model, folder, 0) for folder in (WARM, tmp_path))
    assert one.keys() == several.keys() == dict(model.named_parameters()).keys()
    for name, state in one.items():
        assert all(torch.equal(value, several[name][key]) for key, value in state.items()), name


def test_the_file_of_a_process_that_is_missing_is_named(tmp_path):
    cut_into(tmp_path, 4)
    model = load_nanochat_model(WARM)
    (tmp_path / "optim_000000_rank3.pt").unlink()
    with pytest.raises(CheckpointError, match=r"hold \(384, 32\) for lm_head.weight, which has shape \(500, 32\)"):
        read_pretraining_state(model, tmp_path, 0)
    (tmp_path / "optim_000000_rank1.pt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks optim_000000_rank1.pt"):
        read_pretraining_state(model, tmp_path, 0)


def test_the_state_of_another_model_and_a_damaged_file_are_errors(tmp_path):
    shutil.copy(WARM / "optim_000000_rank0.pt", tmp_path)
    with pytest.raises(CheckpointError, match=r"hold groups of .* parameters, but the model's are"):
        read_pretraining_state(load_nanochat_model(FIXTURES / "model_v2"), tmp_path, 0)
    content = (tmp_path / "optim_000000_rank0.pt").read_bytes()
    (tmp_path / "optim_000000_rank0.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"optim_000000_rank0.pt cannot be read as an optimizer state"):
        read_pretraining_state(load_nanochat_model(WARM), tmp_path, 0)


SETTINGS = [f"model_name_or_path={WARM}", f"tokenizer_path={FIXTURES}/tokenizer/v2_500", "max_length=512", "optimizer=muon_2026"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"model_name_or_path={FIXTURES}/train_v2", "is not a nanochat checkpoint folder"),
        ("optimizer=muon_2025", "load_optimizer is for optimizer: muon_2026"),
        (f"model_name_or_path={FIXTURES}/model_v2", "lacks optim_000000_rank0.pt"),
        ("lora_r=4", "load_optimizer has nothing to load for an adapter"),
    ],
)
def test_a_recipe_that_cannot_load_an_optimizer_is_an_error(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        train(load_recipe(PARITY, [f"output_dir={tmp_path}", *SETTINGS, "load_optimizer=true", override]))


def test_a_recipe_with_load_optimizer_starts_warm(tmp_path):
    settings = [*SETTINGS, f"output_dir={tmp_path}", "max_steps=1", "eval_strategy=no", "eval_on_start=false", "load_optimizer=true"]
    trainer = train(load_recipe(PARITY, settings))
    assert trainer.optimizer.state[trainer.model.lm_head.weight]["step"].item() == 3 + 1
