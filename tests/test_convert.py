"""A converted checkpoint is the same model inside transformers, and a refused one leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import chatsft  # noqa: F401, registers the Auto classes
from chatsft.convert import convert_to_hf, main
from chatsft.model.conversation import CHAT_TEMPLATE
from chatsft.model.nanochat_checkpoint import load_nanochat_checkpoint, load_nanochat_model
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.nanochat_origin import EXTRA_FILE
from tests.model.oracle import FIXTURES

TOKENIZERS = FIXTURES / "tokenizer"
MODELS = {
    "2025": (FIXTURES / "model_v1" / "mha", TOKENIZERS / "v1_512"),
    "2026": (FIXTURES / "model_v2", TOKENIZERS / "v2_4090"),
}
FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "nanochat_extra.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module", params=MODELS)
def converted(request, tmp_path_factory) -> tuple[Path, Path]:
    """Convert each generation once; give the nanochat folder and the written one."""
    checkpoint, tokenizer = MODELS[request.param]
    out = tmp_path_factory.mktemp("converted") / "new" / "model"
    assert main(["to-hf", str(checkpoint), str(out), "--tokenizer", str(tokenizer)]) == 0
    return checkpoint, out


def read_extra(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(folder / EXTRA_FILE, "pt") as file:
        return load_file(folder / EXTRA_FILE), file.metadata()


def test_the_written_folder_is_complete_and_stands_alone(converted):
    _, out = converted
    assert {path.name for path in out.iterdir() if path.suffix != ".py"} == FILES | {"model.safetensors.index.json"}
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (out / name).read_text()
        assert str(FIXTURES) not in text
        assert str(out.parent) not in text


def test_auto_classes_load_the_same_model(converted):
    checkpoint, out = converted
    expected, (model, loading) = load_nanochat_model(checkpoint), AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    ids = torch.randint(expected.config.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(ids).logits, expected(ids).logits)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_auto_tokenizer_loads_nanochats_tokenizer(converted):
    _, out = converted
    tokenizer, rows = AutoTokenizer.from_pretrained(out), json.loads((out / "config.json").read_text())["vocab_size"]
    assert isinstance(tokenizer, GPTTokenizer)
    assert len(tokenizer) == rows
    ids, mask = tokenizer.render_conversation({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]})
    assert ids == [rows - 9 + i for i in (0, 1, 2, 3, 4)]
    assert mask == [0, 0, 0, 0, 1]


def test_generation_begins_stops_and_pads_at_the_chat_tokens(converted):
    _, out = converted
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    bos, end = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|assistant_end|>"])
    for settings in (model.config, model.generation_config, tokenizer):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (bos, end, end)


def test_generate_stops_where_nanochats_engine_stopped(tmp_path):
    engine = FIXTURES / "engine"
    convert_to_hf(engine / "gen_model", tmp_path / "out", TOKENIZERS / "v1")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    recorded = json.loads((engine / "generations.json").read_text())
    assert len(recorded) == 20
    for row in recorded:
        sampled = row["mask_1sampled_0forced"]
        start = len(sampled) - sampled[::-1].index(0) if 0 in sampled else 0  # after the tool output nanochat put in
        prompt = row["prompt_ids"] + row["generated_ids"][:start]
        generated = model.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False)[0, len(prompt) :].tolist()
        assert generated == row["generated_ids"][start:]
        assert generated[-1] == model.generation_config.eos_token_id


def test_the_extra_file_and_the_weights_restore_every_stored_tensor(converted):
    checkpoint, out = converted
    stored, weights, (extra, metadata) = load_nanochat_checkpoint(checkpoint), load_file(out / "model.safetensors"), read_extra(out)
    dtypes = json.loads(metadata["dtypes"])
    assert set(weights) == set(stored.state_dict) == set(dtypes)
    assert set(extra) == set(stored.padding)
    for name, tensor in stored.state_dict.items():
        restored = weights[name].to(getattr(torch, dtypes[name]))
        assert restored.dtype == tensor.dtype
        assert torch.equal(restored, tensor)
        if name in extra:
            assert torch.equal(extra[name], stored.padding[name])
            assert extra[name].dtype == tensor.dtype
    assert json.loads(metadata["meta"]) == json.loads((checkpoint / "meta_000000.json").read_text())
    assert int(metadata["step"]) == stored.step


def test_the_model_never_reads_the_extra_file(tmp_path):
    checkpoint, tokenizer = MODELS["2026"]
    convert_to_hf(checkpoint, tmp_path / "out", tokenizer)
    (tmp_path / "out" / EXTRA_FILE).write_bytes(b"unreadable")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == 4090


def bfloat16_copy(folder: Path) -> Path:
    """Copy the 2025 checkpoint with all tensors in bfloat16."""
    shutil.copytree(MODELS["2025"][0], folder)
    tensors = torch.load(folder / "model_000000.pt")
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model_000000.pt")
    return folder


def test_weights_keep_one_shared_dtype_and_become_float32_where_dtypes_differ(tmp_path):
    convert_to_hf(bfloat16_copy(tmp_path / "bfloat16"), tmp_path / "kept", MODELS["2025"][1])
    convert_to_hf(MODELS["2026"][0], tmp_path / "widened", MODELS["2026"][1])
    for folder, dtype in (("kept", torch.bfloat16), ("widened", torch.float32)):
        assert {tensor.dtype for tensor in load_file(tmp_path / folder / "model.safetensors").values()} == {dtype}
        assert AutoModelForCausalLM.from_pretrained(tmp_path / folder).dtype == dtype
    assert set(json.loads(read_extra(tmp_path / "widened")[1]["dtypes"]).values()) == {"bfloat16", "float32"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_sets_the_weights_and_the_extra_file_remembers_the_stored_ones(tmp_path, dtype):
    checkpoint, tokenizer = MODELS["2026"]
    assert main(["to-hf", str(checkpoint), str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--dtype", dtype]) == 0
    weights, stored = load_file(tmp_path / "out" / "model.safetensors"), load_nanochat_checkpoint(checkpoint).state_dict
    dtypes = json.loads(read_extra(tmp_path / "out")[1]["dtypes"])
    for name, tensor in stored.items():
        assert torch.equal(weights[name], tensor.to(getattr(torch, dtype)))
        assert f"torch.{dtypes[name]}" == str(tensor.dtype)


def test_the_named_step_is_converted_into_an_empty_folder(tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(MODELS["2025"][0], checkpoint)
    tensors = torch.load(checkpoint / "model_000000.pt")
    torch.save({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, checkpoint / "model_000007.pt")
    shutil.copyfile(checkpoint / "meta_000000.json", checkpoint / "meta_000007.json")
    out.mkdir()
    assert main(["to-hf", str(checkpoint), str(out), "--tokenizer", str(MODELS["2025"][1]), "--step", "0"]) == 0
    convert_to_hf(checkpoint, tmp_path / "last", MODELS["2025"][1])
    assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], tensors["lm_head.weight"])
    assert torch.equal(load_file(tmp_path / "last" / "model.safetensors")["lm_head.weight"], tensors["lm_head.weight"] + 1)
    assert (int(read_extra(out)[1]["step"]), int(read_extra(tmp_path / "last")[1]["step"])) == (0, 7)


def add_tensor(checkpoint: Path) -> None:
    tensors = torch.load(checkpoint / "model_000000.pt")
    torch.save({**tensors, "transformer.h.0.ln.weight": torch.ones(32)}, checkpoint / "model_000000.pt")


def cut_short(checkpoint: Path) -> None:
    file = checkpoint / "model_000000.pt"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_tensor, "transformer.h.0.ln.weight"),
        (cut_short, "model_000000.pt cannot be read as a torch checkpoint"),
        (lambda checkpoint: (checkpoint / "meta_000000.json").unlink(), "meta_000000.json is missing"),
        (lambda checkpoint: (checkpoint / "model_000000.pt").unlink(), "holds no model_<step>.pt"),
    ],
)
def test_a_refused_checkpoint_ends_with_one_line_and_leaves_nothing_behind(tmp_path, capsys, damage, message):
    shutil.copytree(MODELS["2025"][0], tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")
    assert main(["to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "new" / "out"), "--tokenizer", str(MODELS["2025"][1])]) == 2
    assert_one_line(capsys, message)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def assert_one_line(capsys, message: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(tmp_path, capsys):
    assert main(["to-hf", str(MODELS["2026"][0]), str(tmp_path / "out"), "--tokenizer", str(TOKENIZERS / "v1")]) == 2
    assert_one_line(capsys, "has 4096 tokens, but the model in")
    assert main(["to-hf", str(MODELS["2026"][0]), str(tmp_path / "out"), "--tokenizer", str(MODELS["2025"][1])]) == 2
    assert_one_line(capsys, "has a vocabulary of 4090")
    assert main(["to-hf", str(MODELS["2026"][0]), str(tmp_path / "out"), "--tokenizer", str(tmp_path)]) == 2
    assert_one_line(capsys, "tokenizer.pkl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("occupied", ["folder", "file"])
def test_an_occupied_output_is_refused_and_left_as_it_is(tmp_path, capsys, occupied):
    checkpoint, tokenizer = MODELS["2025"]
    out = tmp_path / "out"
    file = out / "precious.txt" if occupied == "folder" else out
    file.parent.mkdir(exist_ok=True)
    file.write_text("precious")
    assert main(["to-hf", str(checkpoint), str(out), "--tokenizer", str(tokenizer)]) == 2
    assert_one_line(capsys, "exists and is not an empty folder")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "precious"


def test_a_write_that_fails_halfway_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chatsft.nanochat_origin.save_file", disk_full)
    checkpoint, tokenizer = MODELS["2025"]
    assert main(["to-hf", str(checkpoint), str(tmp_path / "out"), "--tokenizer", str(tokenizer)]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_base_model_is_a_trained_model_in_the_current_format():
    folder = Path(__file__).parent.parent / "recipes" / "quickstart"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    assert (model.num_parameters(), len(tokenizer)) == (5242880, 4096)
    assert isinstance(tokenizer, GPTTokenizer)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    text = "The city is on the river. It was founded in 1832 and is the largest city of the county."
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode_ordinary(text)]])
    assert model(ids, labels=ids).loss.item() < 3.3  # ln(4096) = 8.3 untrained
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert set(FILES) | {"README.md"} <= {path.name for path in folder.iterdir()}
