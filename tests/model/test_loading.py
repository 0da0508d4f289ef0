"""Every way to name a model gives the same model and tokenizer, and what cannot be loaded says what to do."""

import json
import shutil
from base64 import b64encode
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

import chatsft  # noqa: F401, registers the Auto classes
from chatsft.convert import convert_to_hf, convert_to_transformers
from chatsft.model.loading import LoadingError, load_chat_model, load_model_and_tokenizer, load_tokenizer
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_tokenizer import read_encoding
from chatsft.model.tokenization_gpt import GPTTokenizer
from tests.model.oracle import FIXTURES

TOKENIZERS = FIXTURES / "tokenizer"
CHECKPOINT, TOKENIZER = str(FIXTURES / "model_v1" / "mha"), str(TOKENIZERS / "v1_512")
PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}
CONVERSATION = {"messages": [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]}


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    convert_to_hf(CHECKPOINT, out, TOKENIZER)
    return out


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    return shutil.copytree(converted, tmp_path / "copy")


@pytest.mark.parametrize(
    ("checkpoint", "tokenizer"),
    [(FIXTURES / "model_v1" / "mha", TOKENIZERS / "v1_512"), (FIXTURES / "model_v2", TOKENIZERS / "v2_4090")],
    ids=["2025", "2026"],
)
def test_a_nanochat_folder_gives_the_logits_of_its_conversion(checkpoint, tokenizer, tmp_path):
    convert_to_hf(checkpoint, tmp_path / "out", tokenizer)
    direct, direct_tokenizer = load_chat_model(str(checkpoint), str(tokenizer), **PLACE)
    model, converted_tokenizer = load_chat_model(str(tmp_path / "out"), **PLACE)
    ids, mask = converted_tokenizer.render_conversation(CONVERSATION)
    assert direct_tokenizer.render_conversation(CONVERSATION) == (ids, mask)
    assert torch.equal(direct(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert direct.generation_config.to_dict()[name] == model.generation_config.to_dict()[name]


def save_as_published(folder: Path, snapshot: Path) -> Path:
    """Lay a NanoChat out as transformers' own conversion does: bfloat16, its default epsilon, a tokenizer of its tiktoken converter."""
    convert_to_transformers(folder, snapshot / "all")
    model = AutoModelForCausalLM.from_pretrained(snapshot / "all", dtype=torch.bfloat16)
    model.config.rms_norm_eps = 1e-6
    model.save_pretrained(snapshot)
    shutil.rmtree(snapshot / "all")
    encoding = read_encoding(Path(TOKENIZER) / "tokenizer.pkl")
    ranks = "".join(f"{b64encode(token).decode()} {rank}\n" for token, rank in encoding["mergeable_ranks"].items())
    (snapshot / "ranks").write_text(ranks)
    special = {"extra_special_tokens": list(encoding["special_tokens"])}
    TikTokenConverter(str(snapshot / "ranks"), encoding["pat_str"], **special).converted().save(str(snapshot / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|assistant_end|>"}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(settings))
    return snapshot


@pytest.mark.parametrize("place", ["folder", "Hub id"])
def test_a_nanochat_of_transformers_becomes_our_model(converted, tmp_path, monkeypatch, place):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--karpathy--nanochat-d32"
    snapshot = save_as_published(converted, cache / "snapshots" / "0123abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    name = str(snapshot) if place == "folder" else "karpathy/nanochat-d32"
    model, tokenizer = load_chat_model(name, **PLACE)
    assert (type(model), type(tokenizer)) == (GPTForCausalLM, GPTTokenizer)
    assert (model.config.bos_token_id, model.generation_config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    expected, expected_tokenizer = load_model_and_tokenizer(str(converted))
    ids, mask = expected_tokenizer.render_conversation(CONVERSATION)
    assert tokenizer.render_conversation(CONVERSATION) == (ids, mask)
    expected = expected.bfloat16().float()  # as the published weights are rounded
    assert torch.equal(model(torch.tensor([ids])).logits, expected(torch.tensor([ids])).logits)


def test_a_checkpoint_with_its_tokenizer_beside_it_needs_no_tokenizer_path(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    shutil.copy(Path(TOKENIZER) / "tokenizer.pkl", tmp_path)
    model, tokenizer = load_chat_model(str(tmp_path), **PLACE)
    assert len(tokenizer) == model.config.vocab_size


def test_a_chat_model_is_in_evaluation_mode_and_of_the_dtype_asked_for(converted):
    for path, tokenizer_path in ((str(converted), None), (CHECKPOINT, TOKENIZER)):
        model, tokenizer = load_chat_model(path, tokenizer_path, device=torch.device("cpu"), dtype=torch.bfloat16)
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert type(tokenizer) is GPTTokenizer


def test_a_saved_model_takes_its_tokenizer_from_a_tokenizer_pkl_or_a_saved_one(converted, copy):
    (copy / "tokenizer_config.json").unlink()
    for tokenizer_path in (TOKENIZER, str(converted)):
        _, tokenizer = load_chat_model(str(copy), tokenizer_path, **PLACE)
        assert tokenizer.get_vocab() == load_tokenizer(str(converted)).get_vocab()


def test_the_tokenizer_loads_without_a_model(copy):
    (copy / "model.safetensors").unlink()
    expected = load_tokenizer(CHECKPOINT, TOKENIZER).render_conversation(CONVERSATION)
    assert load_tokenizer(str(copy)).render_conversation(CONVERSATION) == expected


def fails(path: str | Path, tokenizer_path: str | Path | None = None) -> str:
    with pytest.raises(LoadingError) as raised:
        load_chat_model(str(path), tokenizer_path and str(tokenizer_path), **PLACE)
    return str(raised.value)


def test_a_nanochat_folder_needs_a_tokenizer_path():
    assert fails(CHECKPOINT) == (
        f"{CHECKPOINT} is a nanochat checkpoint, which holds no tokenizer. Set tokenizer_path to the folder of tokenizer.pkl."
    )


def test_a_tokenizer_beyond_the_vocabulary_is_refused(converted):
    for path in (CHECKPOINT, converted):
        message = fails(path, TOKENIZERS / "v2_4090")
        assert message.startswith(f"The tokenizer has 4090 tokens, but {path} has embeddings for 512.")


def test_a_missing_folder_is_named(tmp_path):
    assert fails(tmp_path / "gone") == f"{tmp_path / 'gone'} is not a folder. Name a saved model, a nanochat checkpoint folder or a Hub id."
    assert fails(CHECKPOINT, tmp_path / "gone").startswith(f"{tmp_path / 'gone'} is not a folder. Name a folder with a tokenizer")


def test_a_file_is_told_to_be_its_folder(tmp_path):
    assert " is not a folder." in fails(FIXTURES / "model_v1" / "mha" / "model_000000.pt", TOKENIZER)
    assert " is not a folder." in fails(CHECKPOINT, TOKENIZERS / "v1_512" / "tokenizer.pkl")


def test_a_folder_without_model_and_tokenizer_says_what_is_looked_for(tmp_path):
    assert fails(tmp_path) == f"{tmp_path} holds neither config.json (a saved model) nor model_<step>.pt (a nanochat checkpoint)."
    assert fails(CHECKPOINT, tmp_path).startswith(f"{tmp_path} holds no tokenizer: neither tokenizer_config.json nor tokenizer.pkl.")


def test_a_saved_model_without_tokenizer_is_refused_before_its_weights_are_read(copy):
    (copy / "tokenizer_config.json").unlink()
    (copy / "model.safetensors").unlink()
    assert fails(copy).startswith(f"{copy} holds no tokenizer")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_an_error_of_the_same_type(copy, name):
    (copy / name).write_text("{")
    assert fails(copy).startswith(f"{copy} does not load: ")


def test_a_damaged_nanochat_file_is_an_error_of_the_same_type(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model_000000.pt").write_bytes(b"PK")
    (tmp_path / "tokenizer.pkl").write_bytes(b"junk")
    assert "is damaged" in fails(tmp_path, TOKENIZER)
    assert "not a readable pickle" in fails(CHECKPOINT, tmp_path)


def test_a_name_that_is_nowhere_does_not_load():
    assert fails("no/such-model").startswith("no/such-model does not load: ")


def test_another_class_of_tokenizer_is_refused_before_the_weights_are_read(copy):
    words = WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="[UNK]").save_pretrained(copy)
    (copy / "model.safetensors").unlink()
    message = fails(copy)
    assert message.startswith(f"{copy} has a ")
    assert "which does not know nanochat's chat format, that of chat. Of a nanochat model, set tokenizer_path" in message
