import json
from pathlib import Path

import pytest
import torch
from torch import nn

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.optim.groups import parameter_groups
from chatsft.optim.muon import MuonAdamW

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/optim/optimizer_groups_2026.json").read_text())
RATES = {"matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.008, "scalar_lr": 0.5}
NANOCHAT_NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.h": "model.layers",
    "value_embeds": "model.value_embeddings",
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "attn.ve_gate": "self_attn.value_gate",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def build_model(generation: int = 2026, **overrides) -> GPTForCausalLM:
    """Build the recorded model (width 48, four layers), with fewer vocabulary rows."""
    config = {"vocab_size": 32, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    if generation == 2026:
        config |= {"value_embedding_layers": [1, 3], "residual_scaling": True, "smear": True, "backout": True}
    return GPTForCausalLM(GPTConfig(**config | overrides))


def hugging_face_name(nanochat_name: str) -> str:
    for old, new in NANOCHAT_NAMES.items():
        nanochat_name = nanochat_name.replace(old, new)
    if nanochat_name.startswith(("model.", "lm_head.")):
        return nanochat_name
    return f"model.{nanochat_name}"


def names_and_settings(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: {key: group[key] for key in group if key != "params"} for group in groups for param in group["params"]}


def test_2026_settings_equal_nanochat_for_every_parameter():
    model = build_model()
    settings = names_and_settings(model, parameter_groups(model, optimizer="muon_2026", **RATES))
    recorded = {hugging_face_name(name): group for group in RECORDED for name in group["params"]}
    assert settings.keys() == recorded.keys() == dict(model.named_parameters()).keys()
    for name, ours in settings.items():
        assert ours["kind"] == recorded[name]["kind"], name
        assert (ours["lr"], ours["weight_decay"]) == pytest.approx((recorded[name]["lr"], recorded[name]["weight_decay"])), name
        if ours["kind"] == "adamw":
            assert (list(ours["betas"]), ours["eps"]) == (recorded[name]["betas"], recorded[name]["eps"]), name
        else:
            assert (ours["rule"], ours["momentum_warmup_steps"]) == ("2026", 300)


def test_2025_settings_are_those_of_its_published_run():
    groups = parameter_groups(
        build_model(generation=2025),
        optimizer="muon_2025",
        matrix_lr=0.02,
        embedding_lr=0.2,
        unembedding_lr=0.004,
        scalar_lr=0.5,
        init_lr_frac=0.02,
    )
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx({"unembedding": 0.00032, "embedding": 0.016, "matrices": 0.0004})  # width 48 multiplies by 4
    assert [group.get("betas") for group in groups] == [(0.8, 0.95), (0.8, 0.95), None]
    assert [group.get("weight_decay", 0.0) for group in groups] == [0.0, 0.0, 0.0]


def test_init_lr_frac_multiplies_every_rate():
    full, tenth = (parameter_groups(build_model(), optimizer="muon_2026", **RATES, init_lr_frac=frac) for frac in (1.0, 0.1))
    assert [group["lr"] for group in tenth] == pytest.approx([0.1 * group["lr"] for group in full])


def test_weight_decay_reaches_muon_in_2026_and_the_vocabulary_in_2025():
    by_name = {
        optimizer: {
            group["name"]: group.get("weight_decay", 0.0)
            for group in parameter_groups(build_model(), optimizer=optimizer, **RATES, weight_decay=0.3)
        }
        for optimizer in ("muon_2025", "muon_2026", "adamw")
    }
    assert by_name["muon_2026"] | {"matrices": 0.0} == {
        group["name"]: group["weight_decay"] for group in parameter_groups(build_model(), optimizer="muon_2026", **RATES)
    }
    assert [by_name["muon_2026"][role] for role in ("matrices", "embedding")] == [0.3, 0.001]
    assert [by_name["muon_2025"][role] for role in ("matrices", "embedding", "unembedding")] == [0.0, 0.3, 0.3]
    assert [by_name["adamw"][role] for role in ("matrices", "embedding", "unembedding")] == [0.3, 0.3, 0.3]


def test_adamw_steps_the_matrices_at_their_own_rate():
    groups = {group["name"]: group for group in parameter_groups(build_model(), optimizer="adamw", **RATES)}
    assert {group["kind"] for group in groups.values()} == {"adamw"}
    assert groups["matrices"]["lr"] == 0.02


def test_tied_embeddings_form_one_group():
    model = build_model(generation=2025)
    model.lm_head.weight = model.model.embed_tokens.weight
    groups = {group["name"]: group for group in parameter_groups(model, optimizer="muon_2025", **RATES)}
    assert list(groups) == ["unembedding", "matrices"]
    assert groups["unembedding"]["params"] == [model.lm_head.weight]


def test_frozen_parameters_are_left_out():
    model = build_model()
    model.model.embed_tokens.requires_grad_(False)
    model.model.smear_lambda.requires_grad_(False)
    settings = names_and_settings(model, parameter_groups(model, optimizer="muon_2026", **RATES))
    assert {name for name, _ in model.named_parameters()} - settings.keys() == {"model.embed_tokens.weight", "model.smear_lambda"}


def test_names_may_carry_a_wrapper_prefix():
    model = build_model()
    wrapper = nn.ModuleDict({"base_model": model})
    wrapper.get_input_embeddings, wrapper.get_output_embeddings = model.get_input_embeddings, model.get_output_embeddings
    plain, wrapped = (parameter_groups(m, optimizer="muon_2026", **RATES) for m in (model, wrapper))
    assert [(group["name"], len(group["params"])) for group in wrapped] == [(group["name"], len(group["params"])) for group in plain]


def test_a_parameter_without_a_role_is_an_error_that_names_it():
    model = build_model()
    model.model.layers[2].experts = nn.Conv1d(48, 48, 3, bias=False)
    with pytest.raises(ValueError, match=r"model\.layers\.2\.experts\.weight \(48, 48, 3\).*optimizer: adamw"):
        parameter_groups(model, optimizer="muon_2026", **RATES)
    assert "matrices" in {group["name"] for group in parameter_groups(model, optimizer="adamw", **RATES)}


def test_norms_and_biases_of_another_model_are_vectors_at_a_hundredth_of_the_scalar_rate():
    model = build_model()
    model.model.layers[2].norm = nn.LayerNorm(48)
    groups = {group["name"]: group for group in parameter_groups(model, optimizer="muon_2026", **RATES)}
    norm = model.model.layers[2].norm
    assert [id(param) for param in groups["vectors"]["params"]] == [id(norm.weight), id(norm.bias)]
    assert (groups["vectors"]["kind"], groups["vectors"]["weight_decay"]) == ("adamw", 0.0)
    assert groups["vectors"]["lr"] == pytest.approx(0.005)


def test_unknown_optimizer_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'muon'.*muon_2025, muon_2026, adamw"):
        parameter_groups(build_model(), optimizer="muon", **RATES)


def test_the_groups_step_every_parameter_of_a_model():
    model = build_model()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = MuonAdamW(parameter_groups(model, optimizer="muon_2026", **RATES))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(not torch.equal(param, before[name]) for name, param in model.named_parameters())


def test_pieces_of_matrices_under_zero3_are_grouped_as_matrices():
    model = build_model()
    expected = {group["name"]: len(group["params"]) for group in parameter_groups(model, optimizer="adamw", **RATES)}
    for param in model.parameters():
        param.ds_shape, param.data = param.shape, torch.empty(0)
    assert {group["name"]: len(group["params"]) for group in parameter_groups(model, optimizer="adamw", **RATES)} == expected
