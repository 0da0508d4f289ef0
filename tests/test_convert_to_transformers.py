"""A 2025 model written as transformers' own NanoChat is the same model where this package is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, NanoChatForCausalLM

from chatsft.convert import convert_to_hf, convert_to_nanochat, convert_to_transformers, main
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.transformers_nanochat import load_transformers_nanochat
from chatsft.nanochat_origin import EXTRA_FILE
from tests.model.oracle import FIXTURES, assert_close, load_json
from tests.test_convert_to_nanochat import DTYPES, assert_identical, many, model_fields, write_nanochat

MODELS = {
    "multi-head": (FIXTURES / "model_v1" / "mha", FIXTURES / "tokenizer" / "v1_512"),
    "grouped-query": (FIXTURES / "train_v1" / "mid_checkpoint", FIXTURES / "tokenizer" / "v1"),
}
CONVERSATION = [
    {"role": "user", "content": "How many r are in strawberry?"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me count. "},
            {"type": "python", "text": "'strawberry'.count('r')"},
            {"type": "python_output", "text": "3"},
            {"type": "text", "text": "There are 3."},
        ],
    },
]
ALONE = """
import json, sys
sys.modules["chatsft"] = None  # importing it raises
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, conversation = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template(conversation, return_dict=False)
prompt = tokenizer.apply_chat_template(conversation[:1], add_generation_prompt=True, return_tensors="pt")
output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
ends = [model.generation_config.eos_token_id, model.config.bos_token_id, tokenizer.pad_token_id]
print(json.dumps([type(model).__name__, ids, output[0].tolist(), ends]))
"""


@pytest.fixture(scope="module", params=MODELS)
def written(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """Give the name of a recorded model, what to-hf wrote, and what to-transformers made of that."""
    checkpoint, tokenizer = MODELS[request.param]
    folder = tmp_path_factory.mktemp("written")
    convert_to_hf(checkpoint, folder / "hf", tokenizer)
    settings = load_json(folder / "hf" / "generation_config.json")
    (folder / "hf" / "generation_config.json").write_text(json.dumps(settings | {"max_new_tokens": 77}))
    assert main(["to-transformers", str(folder / "hf"), str(folder / "out")]) == 0
    return request.param, folder / "hf", folder / "out"


@torch.no_grad()
def test_logits_are_the_same(written):
    _, hf, out = written
    ours, theirs = AutoModelForCausalLM.from_pretrained(hf), AutoModelForCausalLM.from_pretrained(out)
    assert (type(ours), type(theirs)) == (GPTForCausalLM, NanoChatForCausalLM)
    ids = torch.randint(ours.config.vocab_size, (2, 120), generator=torch.Generator().manual_seed(0))
    assert_close(theirs(ids).logits, ours(ids).logits, 1e-5)
    assert theirs.generation_config.max_new_tokens == 77


def test_it_stands_alone(written, tmp_path):
    _, hf, out = written
    command = [sys.executable, "-c", ALONE, str(out), json.dumps(CONVERSATION)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    name, ids, generated, ends = json.loads(done.stdout.splitlines()[-1])
    tokenizer, model = AutoTokenizer.from_pretrained(hf), AutoModelForCausalLM.from_pretrained(hf)
    assert name == "NanoChatForCausalLM"
    assert ids == tokenizer.render_conversation({"messages": CONVERSATION})[0]
    prompt = torch.tensor([tokenizer.render_for_completion({"messages": CONVERSATION})])
    assert generated == model.generate(prompt, max_new_tokens=8, do_sample=False)[0].tolist()
    assert ends == [tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id]
    assert [path.name for path in out.iterdir() if path.suffix == ".py"] == []
    assert load_json(out / "tokenizer_config.json")["tokenizer_class"] in ("PreTrainedTokenizerFast", "TokenizersBackend")


@torch.no_grad()
def test_it_loads_as_our_model_and_goes_back_to_nanochat(written, tmp_path):
    name, hf, out = written
    ids = torch.randint(512, (1, 60), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_transformers_nanochat(out)(ids).logits, AutoModelForCausalLM.from_pretrained(hf)(ids).logits)
    convert_to_nanochat(out, tmp_path / "nanochat")
    returned, original = (torch.load(folder / "model_000000.pt") for folder in (tmp_path / "nanochat", MODELS[name][0]))
    assert list(returned) == list(original)
    for tensor, expected in zip(returned.values(), original.values(), strict=True):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


@many
@given(fields=model_fields(), dtype=DTYPES, seed=st.integers(0, 1000))
@torch.no_grad()
def test_any_2025_model_gives_the_same_logits_and_comes_back_byte_for_byte(tmp_path_factory, fields, dtype, seed):
    folder = tmp_path_factory.mktemp("round")
    fields.pop("window_pattern", None)
    tensors = write_nanochat(folder / "nanochat", fields, 7, torch.float32, dtype, seed)
    convert_to_hf(folder / "nanochat", folder / "hf", folder / "nanochat" / "tokenizer")
    convert_to_transformers(folder / "hf", folder / "theirs")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("hf", "theirs"))
    ids = torch.randint(fields["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(seed))
    assert_close(theirs(ids).logits, ours(ids).logits, 1e-5)
    convert_to_nanochat(folder / "theirs", folder / "back")
    assert_identical(torch.load(folder / "back" / "model_000007.pt"), tensors)


def test_stored_dtypes_are_kept(tmp_path):
    checkpoint, tokenizer = MODELS["multi-head"]
    convert_to_hf(checkpoint, tmp_path / "hf", tokenizer, dtype=torch.bfloat16)
    (tmp_path / "hf" / EXTRA_FILE).unlink()
    assert main(["to-transformers", str(tmp_path / "hf"), str(tmp_path / "out")]) == 0
    assert load_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    assert not (tmp_path / "out" / EXTRA_FILE).exists()


def refusal(capsys, *arguments: Path) -> str:
    capsys.readouterr()
    assert main(["to-transformers", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_a_2026_model_is_refused_with_what_nanochat_lacks(tmp_path, capsys):
    convert_to_hf(FIXTURES / "model_v2", tmp_path / "hf", FIXTURES / "tokenizer" / "v2_4090")
    message = refusal(capsys, tmp_path / "hf", tmp_path / "out")
    for feature in ("query_key_scale", "layer_windows", "value_embedding_layers", "residual_scaling", "smear", "backout"):
        assert feature in message
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_what_is_no_model_of_this_package_is_refused(written, tmp_path, capsys):
    LlamaConfig().save_pretrained(tmp_path / "llama")
    assert "holds a model of type llama" in refusal(capsys, tmp_path / "llama", tmp_path / "out")
    assert "is transformers' NanoChat already" in refusal(capsys, written[2], tmp_path / "out")
    assert "holds no config.json" in refusal(capsys, MODELS["multi-head"][0], tmp_path / "out")
    assert "exists and is not an empty folder" in refusal(capsys, written[1], tmp_path / "llama")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "llama"]
