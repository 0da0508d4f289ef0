"""TRL's trainers with nanochat's optimizer: what is learned from, how, and what is left in the folder."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from chatsft import dpo, grpo
from chatsft.checkpoints import find_damage
from chatsft.convert import convert_to_nanochat
from chatsft.model.loading import load_chat_model
from chatsft.nanochat_origin import EXTRA_FILE
from chatsft.optim.groups import parameter_groups
from chatsft.preference import pairs, rollout
from chatsft.recipe import load_recipe
from tests.evaluation.recorded_model import load_tokenizer
from tests.model.oracle import FIXTURES
from tests.other_models import save_model as save_other_model
from tests.preference.calculator_tasks import SUMS, answer, save_model, save_recipe

GRPO = {
    "train_mixture": [SUMS],
    "num_generations": 2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 32,
    "scale_rewards": "none",
}
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def fixed_answers(monkeypatch) -> None:
    """Let every model answer each sum right, then wrong, then right, and so on."""

    def complete(model, tokenizer, prompts, **options):
        indices = [int(tokenizer.decode(prompt).partition("What is ")[2][0]) - 2 for prompt in prompts]
        draws = options.get("num_samples", 1)
        return [[answer(index, (place + draw) % 2 == 0) for draw in range(draws)] for place, index in enumerate(indices)]

    for module in (rollout, pairs):
        monkeypatch.setattr(module, "generate_completions", complete)


def run_grpo(folder: Path, model: Path, callbacks: tuple = (), **settings):
    return grpo.train(load_recipe(save_recipe(folder, model, **GRPO | settings), (), grpo.ARGUMENTS), callbacks)


def run_dpo(folder: Path, model: Path, callbacks: tuple = (), **settings):
    settings = {"per_device_train_batch_size": 4, "num_samples": 2, "max_new_tokens": 32} | settings
    return dpo.train(load_recipe(save_recipe(folder, model, **{"train_mixture": [SUMS]} | settings), (), dpo.ARGUMENTS), callbacks)


class Terminated(TrainerCallback):
    """Get SIGTERM in the second step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def named_groups(optimizer: torch.optim.Optimizer) -> list[tuple]:
    return [(group["name"], group["kind"], len(group["params"]), group["initial_lr"]) for group in optimizer.param_groups]


def test_the_gradient_of_a_reward_is_that_of_the_models_own_tokens(model, tmp_path, monkeypatch):
    fixed_answers(monkeypatch)
    trainer = run_grpo(tmp_path, model)
    assert trainer.state.log_history[0]["reward"] == 0.5
    policy, tokenizer = load_chat_model(str(model), **CPU)
    trainer.model.load_state_dict(policy.state_dict())
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([trainer.train_dataset[index] for index in (0, 0, 1, 1)])
    trainer.compute_loss(trainer.model, inputs).backward()
    own = 0
    total = 0.0
    for index, is_right in ((0, True), (0, False), (1, True), (1, False)):
        prompt = tokenizer.apply_chat_template(trainer.train_dataset[index]["prompt"], add_generation_prompt=True, return_dict=False)
        ids = answer(index, is_right)
        log_probabilities = policy(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        is_own, inside = [], False
        for token in ids:
            inside = inside or token == tokenizer.encode_special("<|output_start|>")
            is_own.append(not inside)
            inside = inside and token != tokenizer.encode_special("<|output_end|>")
        chosen = log_probabilities[torch.arange(len(ids)), torch.tensor(ids)][torch.tensor(is_own)]
        own += len(chosen)
        total = total - (0.5 if is_right else -0.5) * chosen.sum()
    (total / own).backward()
    for (name, found), expected in zip(trainer.model.named_parameters(), policy.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, atol=1e-6 + 1e-4 * expected.grad.abs().max().item()), name


def test_grpo_steps_nanochats_groups_at_falling_rates_and_leaves_a_chat_model(model, tmp_path, monkeypatch):
    fixed_answers(monkeypatch)
    trainer = run_grpo(tmp_path, model, max_steps=2, eval_mixture=[SUMS], eval_strategy="steps", per_device_eval_batch_size=8)
    expected = parameter_groups(
        load_chat_model(str(model), **CPU)[0],
        optimizer="muon_2025",
        matrix_lr=0.02,
        embedding_lr=0.2,
        unembedding_lr=0.004,
        scalar_lr=0.5,
        init_lr_frac=0.05,
    )
    assert named_groups(trainer.optimizer) == [(g["name"], g["kind"], len(g["params"]), g["lr"]) for g in expected]
    assert [trainer.lr_scheduler.lr_lambdas[0](step) for step in (0, 1)] == [1.0, 0.5]
    assert trainer.state.log_history[-2]["eval_reward"] == 0.5
    trained, tokenizer = load_chat_model(str(tmp_path / "out"), **CPU)
    end = tokenizer.encode_special("<|assistant_end|>")
    assert trained.generation_config.eos_token_id in (end, [end])  # by version of transformers
    assert not torch.equal(trained.lm_head.weight, load_chat_model(str(model), **CPU)[0].lm_head.weight)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {SUMS['task']} | 4 |" in card
    assert "| validation mixture | reward | 0.5000 |" in card
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.parametrize("run", [run_grpo, run_dpo])
def test_tasks_are_scored_during_training_as_chatsft_eval_scores_them(model, tmp_path, monkeypatch, run):
    fixed_answers(monkeypatch)
    trainer = run(tmp_path, model, eval_tasks=["Arithmetic"], eval_max_problems=3)
    assert [log["step"] for log in trainer.state.log_history if "arithmetic_acc" in log] == [0, 1]


@pytest.mark.parametrize("run", [run_grpo, run_dpo])
def test_a_run_that_gets_sigterm_goes_on_as_if_nothing_had_happened(model, tmp_path, monkeypatch, caplog, run):
    fixed_answers(monkeypatch)
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no"}
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = run(tmp_path / "straight", model, **settings)
    stopped = run(tmp_path / "stopped", model, callbacks=(Terminated(),), **settings)
    assert stopped.state.global_step == 2
    assert [path.name for path in (tmp_path / "stopped" / "out").glob("*.safetensors")] == []
    assert "SIGTERM: stopped after 2 of 4 steps. Go on with resume_from_checkpoint=true" in caplog.text
    assert find_damage(tmp_path / "stopped" / "out" / "checkpoint-2") is None
    resumed = run(tmp_path / "stopped", model, **settings, resume_from_checkpoint=True)
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (straight, resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    for name, weights in straight.model.state_dict().items():
        assert torch.allclose(resumed.model.state_dict()[name], weights, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("run", [run_grpo, run_dpo])
def test_tasks_of_an_adapter_are_scored_during_training_too(model, tmp_path, monkeypatch, run):
    fixed_answers(monkeypatch)
    trainer = run(tmp_path, model, lora_r=2, eval_tasks=["Arithmetic"], eval_max_problems=3)
    assert [log["step"] for log in trainer.state.log_history if "arithmetic_acc" in log] == [0, 1]


def test_dpo_starts_at_the_reference_and_learns_the_preference(model, tmp_path, monkeypatch):
    fixed_answers(monkeypatch)
    trainer = run_dpo(tmp_path, model, max_steps=4, eval_mixture=[SUMS], eval_strategy="steps", eval_steps=100)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]
    assert trainer.state.log_history[-2]["eval_loss"] < losses[0]
    assert {group["kind"] for group in trainer.optimizer.param_groups} == {"muon", "adamw"}
    load_chat_model(str(tmp_path / "out"), **CPU)
    assert f"| {SUMS['task']} | 4 |" in (tmp_path / "out" / "README.md").read_text()


def test_the_log_ratio_of_dpo_leaves_tool_output_out(model, tmp_path, monkeypatch):
    fixed_answers(monkeypatch)
    trainer = run_dpo(tmp_path, model)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    output = load_tokenizer().encode_special("<|output_start|>")
    places = (batch["input_ids"] == output).nonzero().tolist()
    assert len(places) == 2
    assert all(batch["completion_mask"][row, column] == 0 for row, column in places)
    changed = batch["input_ids"].clone()
    chosen, _ = trainer.compute_ref_log_probs(trainer.ref_model, dict(batch))
    for row, column in places:
        changed[row, column] = 0
    other = trainer.ref_model(changed, labels=changed.masked_fill(batch["completion_mask"] == 0, -100), fused_lm_head=True)
    same = trainer.ref_model(batch["input_ids"], labels=changed.masked_fill(batch["completion_mask"] == 0, -100), fused_lm_head=True)
    assert same.log_probs.sum(1)[0].item() == pytest.approx(chosen[0].item(), rel=1e-5)
    assert other.label_mask.sum() == same.label_mask.sum() == batch["completion_mask"][:, 1:].sum()


def test_a_nanochat_checkpoint_is_trained_and_goes_back(tmp_path, monkeypatch):
    fixed_answers(monkeypatch)
    checkpoint = FIXTURES / "engine" / "gen_model"
    run_dpo(tmp_path, checkpoint, tokenizer_path=str(FIXTURES / "evaluation" / "tokenizer"))
    assert (tmp_path / "out" / EXTRA_FILE).is_file()
    convert_to_nanochat(tmp_path / "out", tmp_path / "back")
    original, back = torch.load(checkpoint / "model_000420.pt"), torch.load(tmp_path / "back" / "model_000001.pt")
    assert {name: tensor.dtype for name, tensor in back.items()} == {name: tensor.dtype for name, tensor in original.items()}


@pytest.mark.parametrize("run", [run_grpo, run_dpo])
def test_an_adapter_is_trained_alone(model, tmp_path, monkeypatch, run):
    fixed_answers(monkeypatch)
    trainer = run(tmp_path, model, lora_r=2, lora_dropout=0.0, merge_adapter=True)
    assert {group["name"] for group in trainer.optimizer.param_groups} == {"matrices"}
    base, merged = (load_chat_model(str(folder), **CPU)[0] for folder in (model, tmp_path / "out" / "merged"))
    assert torch.equal(base.lm_head.weight, merged.lm_head.weight)
    assert not torch.equal(base.model.layers[0].mlp.up_proj.weight, merged.model.layers[0].mlp.up_proj.weight)
    load_chat_model(str(tmp_path / "out"), **CPU)


@pytest.mark.parametrize("program", [grpo, dpo])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generation": 4, "num_sample": 4}, "unknown key 'num_"),
        ({"learning_rate": 1e-6}, "learning_rate has no effect here. Use matrix_lr"),
        ({"optimizer": "muon"}, "optimizer is 'muon'; it may be"),
        ({"train_mixture": [{"task": "Sums"}]}, "no task 'Sums'"),
        ({"model_name_or_path": "./nowhere"}, "./nowhere is not a folder"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_bad_input_ends_before_training_with_one_message(model, tmp_path, capsys, program, settings, message):
    base = GRPO if program is grpo else {"train_mixture": [SUMS], "num_samples": 2}
    assert program.main([str(save_recipe(tmp_path, model, **base | settings))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [grpo, dpo])
def test_another_chat_format_is_refused(tmp_path, capsys, program):
    base = GRPO if program is grpo else {"train_mixture": [SUMS], "num_samples": 2}
    assert program.main([str(save_recipe(tmp_path, save_other_model("llama", tmp_path / "llama"), **base))]) == 2
    assert "does not know nanochat's chat format" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{}, {"lora_r": 2, "lora_dropout": 0.0, "merge_adapter": True}], ids=["model", "adapter"])
def test_beta_keeps_a_reward_near_the_model_before_training(model, tmp_path, monkeypatch, settings):
    fixed_answers(monkeypatch)
    trainer = run_grpo(tmp_path, model, beta=0.1, max_steps=2, **settings)
    first, second = (log["kl"] for log in trainer.state.log_history if "kl" in log)
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-6
    load_chat_model(str(tmp_path / "out"), **CPU)


def test_beta_needs_a_saved_model(tmp_path, capsys):
    tokenizer = {"tokenizer_path": str(FIXTURES / "evaluation" / "tokenizer")}
    recipe = save_recipe(tmp_path, FIXTURES / "engine" / "gen_model", **GRPO, beta=0.1, **tokenizer)
    assert grpo.main([str(recipe)]) == 2
    assert "Convert the checkpoint first" in capsys.readouterr().err


def test_too_few_problems_for_a_step_are_refused(model, tmp_path, capsys):
    assert grpo.main([str(save_recipe(tmp_path, model, **GRPO | {"gradient_accumulation_steps": 2}))]) == 2
    assert "train_mixture has 4 problems, but 8 are answered at a time" in capsys.readouterr().err


def test_samplers_that_our_generation_has_not_are_refused(model, tmp_path, capsys):
    assert grpo.main([str(save_recipe(tmp_path, model, **GRPO, top_p=0.9, use_vllm=True))]) == 2
    assert "top_p, use_vllm has no effect" in capsys.readouterr().err
