"""The plan of a run: what it counts, and that the memory it names is that of the tensors."""

import pytest
import torch

from chatsft.arguments import ChatArguments
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.plan import Batching, activation_numbers, count_updates, describe_time, estimate_memory
from chatsft.train import main
from tests.test_train import PARITY

CHECKPOINTING = "activation_checkpointing" if hasattr(ChatArguments, "activation_checkpointing") else "gradient_checkpointing"
BATCHING = Batching(100, 30_000, 12_000, 40_960, 20, 2048, 4, 2)


def build(**fields) -> GPTForCausalLM:
    return GPTForCausalLM(GPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, **fields))


def settings(tmp_path, **fields) -> ChatArguments:
    return ChatArguments(output_dir=str(tmp_path), use_cpu=True, **fields)


def test_updates_follow_from_rows_and_epochs_or_max_steps(tmp_path):
    assert count_updates(settings(tmp_path), BATCHING) == 3
    assert count_updates(settings(tmp_path, num_train_epochs=0.5), BATCHING) == 2
    assert count_updates(settings(tmp_path, max_steps=7), BATCHING) == 7


def test_weights_gradients_and_optimizer_state_are_counted_exactly(tmp_path):
    model = build()
    memory = estimate_memory(model, settings(tmp_path), tokens=256)
    numbers = model.num_parameters()
    vocabulary = 2 * 64 * 32
    assert memory["weights"] * 2**30 == memory["gradients"] * 2**30 == 4 * numbers
    assert memory["optimizer"] * 2**30 == 4 * (numbers + vocabulary)  # Muon keeps one number a weight, AdamW two


def test_a_compiled_layer_keeps_eighteen_widths_a_token_or_ten_where_cheap_ones_are_computed_again(tmp_path):
    config = build().config
    assert activation_numbers(config, settings(tmp_path)) == 3 * 20 * 32
    assert activation_numbers(config, settings(tmp_path, torch_compile=True)) == 3 * 18 * 32
    assert activation_numbers(config, settings(tmp_path, torch_compile=True, activation_memory_budget=0.8)) == 3 * 10 * 32
    assert activation_numbers(config, settings(tmp_path, **{CHECKPOINTING: True})) == (3 + 20) * 32


def test_the_tensors_kept_for_the_backward_pass_are_as_many_as_the_plan_says(tmp_path):
    model, kept = build().train(), {}
    ids, weights = torch.arange(64)[None], {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden = model.model.embed_tokens(ids).detach()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(inputs_embeds=hidden.requires_grad_(), use_cache=False)
    planned = 64 * activation_numbers(model.config, settings(tmp_path)) * 4
    assert sum(kept.values()) == pytest.approx(planned, rel=0.1)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    assert main([str(PARITY), f"output_dir={tmp_path / 'out'}", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["conversations", "rows", "updates", "memory", "time"]
    assert not (tmp_path / "out").exists()


def test_the_price_of_gpu_hours_is_named_on_gpus_alone(tmp_path, monkeypatch):
    args = settings(tmp_path, gpu_hour_price=2.5)
    assert describe_time(7200, args) == "about 120 min"
    monkeypatch.setattr(ChatArguments, "device", torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    assert describe_time(7200, args) == "about 120 min on a GPU, 2.000 GPU-hours, 5.00 at 2.5 an hour"
