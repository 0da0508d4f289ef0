"""transformers' own NanoChat and our model compute the same, whichever of the two was there first."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, NanoChatConfig, NanoChatForCausalLM, PreTrainedTokenizerFast

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from chatsft.model.nanochat_tokenizer import TokenizerFileError, build_tokenizer, load_nanochat_tokenizer, read_encoding
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.model.transformers_nanochat import (
    NORM_EPSILON,
    NanoChatError,
    gpt_config,
    is_transformers_nanochat,
    load_transformers_nanochat,
    load_transformers_nanochat_tokenizer,
    rename_tensors,
    transformers_nanochat_config,
)
from tests.model.oracle import FIXTURES, assert_close, assert_same_logits

SIZES = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 6}
V1_512 = FIXTURES / "tokenizer" / "v1_512"


def small_model(**changes) -> NanoChatForCausalLM:
    """Return a NanoChat of random weights, embeddings as large as nanochat's."""
    torch.manual_seed(0)
    model = NanoChatForCausalLM(NanoChatConfig(**{**SIZES, "rms_norm_eps": NORM_EPSILON, **changes})).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    for parameter in model.model.layers.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_ids(length: int = 100) -> torch.Tensor:
    return torch.randint(512, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "final_logit_softcapping": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    ],
)
@torch.no_grad()
def test_a_nanochat_of_transformers_is_the_same_model_here(tmp_path, changes):
    source = small_model(**changes)
    source.save_pretrained(tmp_path)
    model = load_transformers_nanochat(tmp_path)
    assert not model.training
    assert_close(model(random_ids()).logits, source(random_ids()).logits, 1e-6)
    assert transformers_nanochat_config(model.config).rope_parameters == source.config.rope_parameters
    generated = [one.generate(random_ids(8)[:1], max_new_tokens=20, do_sample=False).tolist() for one in (model, source)]
    assert generated[0] == generated[1]


def test_the_dtype_asked_for_is_used(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_transformers_nanochat(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("name", "prefix", "inputs"), [("mha", "short", "x_short"), ("gqa", "long", "x_long")])
@torch.no_grad()
def test_nanochats_own_logits_come_out_of_transformers_nanochat(name, prefix, inputs):
    folder = FIXTURES / "model_v1" / name
    source = load_nanochat_model(folder)
    model = NanoChatForCausalLM(transformers_nanochat_config(source.config)).eval()
    model.load_state_dict(rename_tensors(source.state_dict(), to_ours=False), strict=True)
    ids = load_file(folder / "inputs.safetensors")[inputs].long()
    assert_same_logits(model(ids).logits, load_file(folder / "outputs_rotary_fp32.safetensors"), prefix)
    assert_close(model(ids).logits, source(ids).logits, 1e-6)


@torch.no_grad()
def test_the_epsilon_that_transformers_writes_by_default_makes_no_difference_to_nanochats_models(tmp_path, caplog):
    """Published configurations say 1e-6, where nanochat adds 1.19e-7."""
    source = load_nanochat_model(FIXTURES / "model_v1" / "gqa")
    config = transformers_nanochat_config(source.config)
    config.rms_norm_eps = 1e-6
    model = NanoChatForCausalLM(config).eval()
    model.load_state_dict(rename_tensors(source.state_dict(), to_ours=False), strict=True)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = load_transformers_nanochat(tmp_path)
    assert caplog.records == []
    assert_close(model(random_ids()).logits, loaded(random_ids()).logits, 1e-5)
    assert torch.equal(source(random_ids()).logits, loaded(random_ids()).logits)


def test_an_epsilon_that_is_felt_is_named(tmp_path, monkeypatch):
    model = small_model(rms_norm_eps=1e-5)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.02)
    model.save_pretrained(tmp_path)
    warnings = []
    monkeypatch.setattr("chatsft.model.transformers_nanochat.logger.warning", warnings.append)
    load_transformers_nanochat(tmp_path)
    assert ["rms_norm_eps 1e-05 and very small embeddings" in warning for warning in warnings] == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True, not False"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu', not 'relu2'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1, not 0.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "rope_type is 'linear', not 'default'"),
    ],
)
def test_a_nanochat_that_nanochat_could_not_have_trained_is_refused(tmp_path, changes, message):
    NanoChatConfig(**SIZES, **changes).save_pretrained(tmp_path)
    with pytest.raises(NanoChatError, match=message):
        load_transformers_nanochat(tmp_path)


def test_missing_and_unknown_tensors_are_refused(tmp_path):
    small_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_tail.weight"] = weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NanoChatError, match=r"missing keys: lm_head\.weight; unexpected keys: lm_tail\.weight"):
        load_transformers_nanochat(tmp_path)


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"query_key_scale": 1.2}, "query_key_scale"),
        ({"layer_windows": [2049] * 12}, "layer_windows"),
        ({"value_embedding_layers": [1]}, "value_embedding_layers"),
        ({"residual_scaling": True}, "residual_scaling"),
        ({"smear": True}, "smear"),
        ({"backout": True}, "backout"),
        ({"rotary_dtype": "bfloat16"}, "rotary_dtype"),
    ],
)
def test_each_feature_that_nanochat_lacks_is_named(changes, feature):
    with pytest.raises(NanoChatError, match=f"has what it lacks: .*{feature}"):
        transformers_nanochat_config(GPTConfig(**changes))


def test_configurations_go_there_and_back():
    config = GPTConfig(vocab_size=500, num_key_value_heads=2, rope_theta=5000.0, final_logit_softcapping=20.0, intermediate_size=96)
    returned, fields = gpt_config(transformers_nanochat_config(config)).to_dict(), config.to_dict()
    differing = {name for name, value in fields.items() if returned[name] != value}
    assert differing <= {"bos_token_id", "eos_token_id", "pad_token_id"}


def test_a_nanochat_is_recognised_by_its_configuration(tmp_path):
    for name, config in (("nanochat", NanoChatConfig()), ("ours", GPTConfig()), ("llama", LlamaConfig())):
        config.save_pretrained(tmp_path / name)
        assert is_transformers_nanochat(tmp_path / name) is (name == "nanochat")
    (tmp_path / "empty").mkdir()
    assert not is_transformers_nanochat(tmp_path / "empty")
    assert not is_transformers_nanochat(FIXTURES / "model_v1" / "mha")


def test_its_tokenizer_becomes_ours(tmp_path):
    build_tokenizer(read_encoding(V1_512 / "tokenizer.pkl"), PreTrainedTokenizerFast, "{{ messages }}").save_pretrained(tmp_path)
    small_model().save_pretrained(tmp_path)
    assert not isinstance(AutoTokenizer.from_pretrained(tmp_path), GPTTokenizer)
    tokenizer, expected = load_transformers_nanochat_tokenizer(tmp_path), load_nanochat_tokenizer(V1_512)
    assert isinstance(tokenizer, GPTTokenizer)
    conversation = {"messages": [{"role": "user", "content": "2+2 <|bos|>"}, {"role": "assistant", "content": "It is 4."}]}
    assert tokenizer.render_conversation(conversation) == expected.render_conversation(conversation)
    assert tokenizer.chat_template == expected.chat_template


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    tokenizer = load_nanochat_tokenizer(V1_512)
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TokenizerFileError, match="special tokens are"):
        load_transformers_nanochat_tokenizer(tmp_path)
