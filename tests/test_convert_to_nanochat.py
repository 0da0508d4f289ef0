"""What to-hf reads, to-nanochat gives back bit by bit, and what has no form in nanochat is refused with nothing left behind."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig

from chatsft.convert import convert_to_hf, convert_to_nanochat, convert_to_transformers, main
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_checkpoint import layer_windows
from chatsft.model.nanochat_tokenizer import build_tokenizer, read_encoding, save_nanochat_tokenizer
from chatsft.nanochat_origin import EXTRA_FILE
from chatsft.recipe import load_recipe
from chatsft.train import train as train_recipe
from tests.model.oracle import FIXTURES, load_json
from tests.other_models import save_recipe

TOKENIZERS = FIXTURES / "tokenizer"
MODELS = {
    "2025": (FIXTURES / "model_v1" / "mha", TOKENIZERS / "v1_512"),
    "2026": (FIXTURES / "model_v2", TOKENIZERS / "v2_4090"),
}
PATTERN = read_encoding(TOKENIZERS / "v1_512" / "tokenizer.pkl")["pat_str"]
SPECIAL_TOKENS = list(read_encoding(TOKENIZERS / "v1_512" / "tokenizer.pkl")["special_tokens"])


@pytest.fixture(scope="module", params=MODELS)
def converted(request, tmp_path_factory) -> tuple[str, Path]:
    """Give the generation and its recorded checkpoint as to-hf writes it."""
    checkpoint, tokenizer = MODELS[request.param]
    out = tmp_path_factory.mktemp("converted") / "hf"
    convert_to_hf(checkpoint, out, tokenizer)
    return request.param, out


@pytest.fixture
def copy(converted, tmp_path) -> tuple[str, Path]:
    shutil.copytree(converted[1], tmp_path / "hf")
    return converted[0], tmp_path / "hf"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor[None].view(torch.uint8)


def assert_identical(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Require the same names in the same order, and the same dtypes, shapes and bytes."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(actual[name]), bits(tensor)), name


def read_checkpoint(folder: Path, step: int = 0) -> tuple[dict[str, torch.Tensor], dict]:
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        f"meta_{step:06d}.json",
        f"model_{step:06d}.pt",
        "tokenizer/token_bytes.pt",
        "tokenizer/tokenizer.pkl",
    ]
    return torch.load(folder / f"model_{step:06d}.pt"), load_json(folder / f"meta_{step:06d}.json")


def assert_one_line(capsys, message: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("error: ")


def test_an_untrained_model_comes_back_byte_for_byte(converted, tmp_path, capsys):
    generation, hf = converted
    checkpoint, tokenizer = MODELS[generation]
    assert main(["to-nanochat", str(hf), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out'}\n"
    tensors, _ = read_checkpoint(tmp_path / "out")
    assert_identical(tensors, torch.load(checkpoint / "model_000000.pt"))
    assert (tmp_path / "out" / "meta_000000.json").read_text() == (checkpoint / "meta_000000.json").read_text()
    before, after = (pickle.loads((folder / "tokenizer.pkl").read_bytes()) for folder in (tokenizer, tmp_path / "out" / "tokenizer"))
    assert after.__getstate__() == before.__getstate__()
    assert after.encode_ordinary("naïve  café\n\t12345 日本語") == before.encode_ordinary("naïve  café\n\t12345 日本語")


def test_token_bytes_are_those_of_the_generation(converted, tmp_path):
    generation, hf = converted
    convert_to_nanochat(hf, tmp_path / "out")
    counts = torch.load(tmp_path / "out" / "tokenizer" / "token_bytes.pt")
    if generation == "2026":
        assert torch.equal(counts, torch.load(TOKENIZERS / "v2_4090" / "token_bytes.pt"))
    assert (counts.dtype, counts[128].item()) == (torch.int32, 3 if generation == "2025" else 1)  # byte 0x80 alone is no character


def test_without_the_extra_file_padding_rows_are_zeros_and_dtypes_stay(copy, tmp_path):
    generation, hf = copy
    (hf / EXTRA_FILE).unlink()
    convert_to_nanochat(hf, tmp_path / "out")
    tensors, meta = read_checkpoint(tmp_path / "out")
    original = torch.load(MODELS[generation][0] / "model_000000.pt")
    recorded = load_json(MODELS[generation][0] / "meta_000000.json")["model_config"]
    assert meta == {"step": 0, "model_config": {**recorded, **({"window_pattern": "S"} if generation == "2026" else {})}}
    assert layer_windows("S", 4, 256) == layer_windows("SSSL", 4, 256)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert list(tensors) == list(original)
    for name, tensor in original.items():
        rows = meta["model_config"]["vocab_size"] if "wte" in name or "lm_head" in name or "value_embeds" in name else len(tensor)
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name][:rows], tensor[:rows].float())
        assert not tensors[name][rows:].any()


def train(hf: Path, evaluation: dict) -> dict[str, torch.Tensor]:
    """Change every weight and leave behind what Trainer leaves."""
    weights = load_file(hf / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    weights = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    save_file(weights, hf / "model.safetensors", metadata={"format": "pt"})
    logs = [{"step": 10, "loss": 2.0}, {"step": 10, **dict.fromkeys(evaluation, 9.0)}, {"step": 20, **evaluation}, {"train_runtime": 1.0}]
    state = {"global_step": 20, "max_steps": 20, "eval_steps": 8, "train_batch_size": 4, "log_history": logs}
    (hf / "trainer_state.json").write_text(json.dumps(state))
    return weights


def test_a_trained_model_has_nanochats_dtypes_padding_and_meta(copy, tmp_path):
    generation, hf = copy
    weights = train(hf, {"eval_loss": 1.25, "eval_bpb": 0.75})
    convert_to_nanochat(hf, tmp_path / "out")
    tensors, meta = read_checkpoint(tmp_path / "out", step=20)
    original = torch.load(MODELS[generation][0] / "model_000000.pt")
    vocab_size = meta["model_config"]["vocab_size"]
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: tensor.dtype for name, tensor in original.items()}
    embedding = weights["model.embed_tokens.weight"].to(original["transformer.wte.weight"].dtype)
    assert torch.equal(tensors["transformer.wte.weight"], torch.cat([embedding, original["transformer.wte.weight"][vocab_size:]]))
    assert torch.equal(tensors["transformer.h.1.mlp.c_fc.weight"], weights["model.layers.1.mlp.up_proj.weight"])
    recorded = load_json(FIXTURES / "convert" / f"sft_meta_{generation}.json")
    assert list(meta) == [name for name in recorded if not name.endswith("_acc")]
    assert list(meta["model_config"]) == list(recorded["model_config"])
    assert meta["model_config"] == load_json(MODELS[generation][0] / "meta_000000.json")["model_config"]
    assert meta["step"] == 20
    if generation == "2025":
        assert meta["val_loss"] == 1.25
    else:
        assert meta["val_bpb"] == 0.75
        assert set(meta["user_config"]) <= set(recorded["user_config"])
        expected = {"max_seq_len": 256, "num_iterations": 20, "device_batch_size": 4, "eval_every": 8}
        assert {name: meta["user_config"][name] for name in expected} == expected


def test_figures_that_were_not_logged_are_left_out(copy, tmp_path):
    _, hf = copy
    train(hf, {})
    convert_to_nanochat(hf, tmp_path / "out")
    _, meta = read_checkpoint(tmp_path / "out", step=20)
    assert {"val_loss", "val_bpb"}.isdisjoint(meta)


@pytest.mark.parametrize("base", ["converted", "nanochat"])
def test_a_trained_model_finds_dtypes_and_padding_in_its_base(converted, copy, tmp_path, base):
    generation, hf = copy
    train(hf, {"eval_loss": 1.0})
    convert_to_nanochat(hf, tmp_path / "expected")
    (hf / EXTRA_FILE).unlink()
    folder = converted[1] if base == "converted" else MODELS[generation][0]
    assert main(["to-nanochat", str(hf), str(tmp_path / "out"), "--base", str(folder)]) == 0
    (expected, expected_meta), (tensors, meta) = (read_checkpoint(tmp_path / name, step=20) for name in ("expected", "out"))
    assert_identical(tensors, expected)
    assert meta == expected_meta


@pytest.mark.parametrize("base", ["converted", "nanochat", "merged adapter"])
def test_a_model_trained_here_goes_back_with_its_padding_rows_and_dtypes_and_no_flag(converted, tmp_path, base):
    generation, folder = converted
    checkpoint, tokenizer = MODELS[generation]
    name, tokenizer_path = (checkpoint, tokenizer) if base == "nanochat" else (folder, folder)
    settings = {"tokenizer_path": str(tokenizer_path), "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"lora_r": 2, "merge_adapter": True} if base == "merged adapter" else {}
    recipe = save_recipe(tmp_path, name, **settings)
    train_recipe(load_recipe(recipe))
    for trained in ["out/merged"] if base == "merged adapter" else ["out", "out/checkpoint-1"]:
        convert_to_nanochat(tmp_path / trained, tmp_path / "back" / trained)
        tensors, meta = read_checkpoint(tmp_path / "back" / trained, step=1)
        original = torch.load(checkpoint / "model_000000.pt")
        vocab_size = meta["model_config"]["vocab_size"]
        assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: tensor.dtype for name, tensor in original.items()}
        for row in ("transformer.wte.weight", "lm_head.weight"):
            assert torch.equal(tensors[row][vocab_size:], original[row][vocab_size:])
        matrix = "transformer.h.1.mlp.c_fc.weight"
        assert not torch.equal(tensors[matrix], original[matrix])


def test_a_nanochat_of_transformers_is_trained_and_goes_back(tmp_path):
    checkpoint, tokenizer = MODELS["2025"]
    convert_to_hf(checkpoint, tmp_path / "hf", tokenizer)
    convert_to_transformers(tmp_path / "hf", tmp_path / "theirs")
    trainer = train_recipe(load_recipe(save_recipe(tmp_path, tmp_path / "theirs", max_steps=1)))
    assert type(trainer.model) is GPTForCausalLM
    convert_to_nanochat(tmp_path / "out", tmp_path / "back")
    tensors, _ = read_checkpoint(tmp_path / "back", step=1)
    assert tensors.keys() == torch.load(checkpoint / "model_000000.pt").keys()


def test_a_model_in_several_files_is_put_together(copy, tmp_path):
    generation, hf = copy
    weights = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in files if files[name] == file}, hf / file, metadata={"format": "pt"})
    (hf / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    convert_to_nanochat(hf, tmp_path / "out")
    assert_identical(read_checkpoint(tmp_path / "out")[0], torch.load(MODELS[generation][0] / "model_000000.pt"))


def tiny_encoding(num_merges: int) -> dict:
    """Return a tokenizer of 256 bytes, merges of neighbouring letters, and the special tokens."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes([97 + i // 26, 97 + i % 26]) for i in range(num_merges)]
    special_tokens = {token: len(tokens) + i for i, token in enumerate(SPECIAL_TOKENS)}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return {"name": "rustbpe", "pat_str": PATTERN, "mergeable_ranks": ranks, "special_tokens": special_tokens}


def nanochat_shapes(fields: dict) -> dict[str, tuple[int, ...]]:
    """List the tensors of nanochat's model, written down from its recorded checkpoints and its padding rule."""
    width, layers = fields["n_embd"], fields["n_layer"]
    values = width // fields["n_head"] * fields["n_kv_head"]
    is_2026 = "window_pattern" in fields
    rows = (fields["vocab_size"] + 63) // 64 * 64 if is_2026 else fields["vocab_size"]
    shapes = {"resid_lambdas": (layers,), "x0_lambdas": (layers,), "smear_lambda": (1,), "backout_lambda": (1,)} if is_2026 else {}
    shapes["transformer.wte.weight"] = (rows, width)
    gated = [i for i in range(layers) if is_2026 and (layers - 1 - i) % 2 == 0]
    for i in range(layers):
        block = {"c_q": (width, width), "c_k": (values, width), "c_v": (values, width), "c_proj": (width, width)}
        block |= {"ve_gate": (fields["n_kv_head"], 12)} if i in gated else {}
        shapes |= {f"transformer.h.{i}.attn.{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"transformer.h.{i}.mlp.c_fc.weight": (4 * width, width), f"transformer.h.{i}.mlp.c_proj.weight": (width, 4 * width)}
    shapes["lm_head.weight"] = (rows, width)
    if is_2026:
        shapes |= {"smear_gate.weight": (1, 24), **{f"value_embeds.{i}.weight": (rows, values) for i in gated}}
    return shapes


@st.composite
def model_fields(draw) -> dict:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    fields = {
        "sequence_len": draw(st.sampled_from([64, 256, 1000, 2048])),
        "vocab_size": 265 + draw(st.integers(0, 150)),
        "n_layer": draw(st.integers(1, 6)),
        "n_head": heads,
        "n_kv_head": kv_heads,
        "n_embd": heads * 2 * draw(st.integers(1, 6)),
    }
    pattern = draw(st.none() | st.text("SLsl", min_size=1, max_size=8))
    return fields if pattern is None else {**fields, "window_pattern": pattern}


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
many = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_nanochat(folder: Path, fields: dict, step: int, matrices: torch.dtype, embeddings: torch.dtype, seed: int) -> dict:
    """Write a nanochat checkpoint of random weights, and its tokenizer; return the tensors."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in nanochat_shapes(fields).items():
        dtype = embeddings if "wte" in name or "value_embeds" in name else matrices
        tensors[name] = torch.randn(shape, generator=generator).to(dtype)
    torch.save(tensors, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "val_bpb": 1.5, "model_config": fields}, indent=2))
    save_nanochat_tokenizer(tiny_encoding(fields["vocab_size"] - 265), folder / "tokenizer", counts_raw_bytes="window_pattern" in fields)
    return tensors


@many
@given(fields=model_fields(), step=st.integers(0, 2_000_000), matrices=DTYPES, embeddings=DTYPES, seed=st.integers(0, 1000))
def test_any_nanochat_model_comes_back_byte_for_byte(tmp_path_factory, fields, step, matrices, embeddings, seed):
    folder = tmp_path_factory.mktemp("round")
    tensors = write_nanochat(folder / "nanochat", fields, step, matrices, embeddings, seed)
    convert_to_hf(folder / "nanochat", folder / "hf", folder / "nanochat" / "tokenizer")
    convert_to_nanochat(folder / "hf", folder / "out")
    returned, _ = read_checkpoint(folder / "out", step)
    assert_identical(returned, tensors)
    for name in (f"meta_{step:06d}.json", "tokenizer/tokenizer.pkl", "tokenizer/token_bytes.pt"):
        assert (folder / "out" / name).read_bytes() == (folder / "nanochat" / name).read_bytes()


@many
@given(fields=model_fields(), dtype=DTYPES, seed=st.integers(0, 1000))
def test_any_fresh_model_is_one_nanochat_loads_and_comes_back(tmp_path_factory, fields, dtype, seed):
    folder = tmp_path_factory.mktemp("round")
    torch.manual_seed(seed)
    model = GPTForCausalLM(fresh_config(fields))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.to(dtype).save_pretrained(folder / "hf")
    build_tokenizer(tiny_encoding(fields["vocab_size"] - 265)).save_pretrained(folder / "hf")
    convert_to_nanochat(folder / "hf", folder / "nanochat")
    tensors, meta = read_checkpoint(folder / "nanochat")
    written = meta["model_config"]
    assert list(written) == list(fields)
    assert {**written, "window_pattern": ""} == {**fields, "window_pattern": ""}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == nanochat_shapes(fields)
    convert_to_hf(folder / "nanochat", folder / "again", folder / "nanochat" / "tokenizer")
    assert_identical(load_file(folder / "again" / "model.safetensors"), load_file(folder / "hf" / "model.safetensors"))
    configs = [GPTConfig.from_pretrained(folder / name).to_dict() for name in ("hf", "again")]
    for config in configs:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            del config[name]
    assert configs[0] == configs[1]


def fresh_config(fields: dict) -> GPTConfig:
    """Describe a nanochat model in our terms, written down beside the reader's own rules."""
    layers, later = fields["n_layer"], {}
    if "window_pattern" in fields:
        later = {"rope_theta": 100000.0, "query_key_scale": 1.2, "residual_scaling": True, "smear": True, "backout": True}
        later["layer_windows"] = layer_windows(fields["window_pattern"], layers, fields["sequence_len"])
        later["value_embedding_layers"] = [i for i in range(layers) if (layers - 1 - i) % 2 == 0]
    return GPTConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["n_embd"],
        num_hidden_layers=layers,
        num_attention_heads=fields["n_head"],
        num_key_value_heads=fields["n_kv_head"],
        max_position_embeddings=fields["sequence_len"],
        **later,
    )


def test_a_tokenizer_that_was_loaded_and_saved_again_still_comes_back(copy, tmp_path):
    generation, hf = copy
    AutoTokenizer.from_pretrained(hf).save_pretrained(hf)
    convert_to_nanochat(hf, tmp_path / "out")
    before, after = (read_encoding(folder / "tokenizer.pkl") for folder in (MODELS[generation][1], tmp_path / "out" / "tokenizer"))
    assert after == before


def edit_config(**changes):
    def damage(hf: Path) -> None:
        config = load_json(hf / "config.json")
        (hf / "config.json").write_text(json.dumps(config | changes))

    return damage


def edit_weights(change):
    def damage(hf: Path) -> None:
        weights = load_file(hf / "model.safetensors")
        change(weights)
        save_file(weights, hf / "model.safetensors", metadata={"format": "pt"})

    return damage


def replace_extra(hf: Path) -> None:
    other = hf.parent / "other"
    convert_to_hf(FIXTURES / "engine" / "gen_model", other, TOKENIZERS / "v1")
    shutil.move(other / EXTRA_FILE, hf / EXTRA_FILE)
    shutil.rmtree(other)


def add_token(hf: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(hf)
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(hf)


def llama(hf: Path) -> None:
    LlamaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4).save_pretrained(hf)


REFUSED = [
    (llama, "holds a model of type llama, which has no form in nanochat"),
    (lambda hf: (hf / "config.json").unlink(), "holds no config.json"),
    (lambda hf: (hf / "config.json").rename(hf / "adapter_config.json"), "It is an adapter: train with merge_adapter=true"),
    (lambda hf: (hf / "config.json").write_text("{"), "config.json is not JSON"),
    (lambda hf: (hf / "config.json").write_text("[1]"), "holds a list, expected a JSON object"),
    (edit_config(num_hidden_layers="two"), "config.json describes a model that cannot be"),
    (edit_config(num_attention_heads=5), "config.json describes a model that cannot be"),
    (edit_config(num_hidden_layers=3, layer_windows=None), "the weights in"),
    (edit_config(final_logit_softcapping=30.0), "no generation of nanochat has this architecture: final_logit_softcapping is 30.0"),
    (edit_config(rope_theta=5e5), "rope_theta is 500000.0, nanochat has"),
    (lambda hf: (hf / "model.safetensors").unlink(), "holds no model.safetensors"),
    (lambda hf: (hf / "model.safetensors").write_bytes(b"cut"), "model.safetensors cannot be read"),
    (lambda hf: (hf / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
    (edit_weights(lambda weights: weights.pop("lm_head.weight")), "lack lm_head.weight"),
    (edit_weights(lambda weights: weights.update(extra=torch.ones(1))), "have unknown extra"),
    (edit_weights(lambda weights: weights.update({"lm_head.weight": torch.ones(3, 4)})), "lm_head.weight has shape (3, 4)"),
    (lambda hf: (hf / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    (lambda hf: (hf / "tokenizer.json").write_text("{}"), "tokenizer.json: not a readable tokenizer.json"),
    (add_token, "special tokens are"),
    (lambda hf: shutil.copyfile(hf.parent / "small.json", hf / "tokenizer.json"), "has 265 tokens, but the model has a vocabulary of"),
    (replace_extra, "nanochat_extra.safetensors belongs to another model"),
    (lambda hf: (hf / EXTRA_FILE).write_bytes(b"cut"), "nanochat_extra.safetensors cannot be read"),
    (lambda hf: save_file({}, hf / EXTRA_FILE, metadata={"format": "pt"}), "nanochat_extra.safetensors cannot be read"),
    (lambda hf: (hf / "trainer_state.json").write_text("{}"), "trainer_state.json has no global_step"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_refused_model_ends_with_one_line_and_leaves_nothing_behind(copy, tmp_path, capsys, damage, message):
    _, hf = copy
    Tokenizer.save(build_tokenizer(tiny_encoding(0)).backend_tokenizer, str(tmp_path / "small.json"))
    damage(hf)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["to-nanochat", str(hf), str(tmp_path / "new" / "out")]) == 2
    assert_one_line(capsys, message)
    assert sorted(tmp_path.rglob("*")) == before


def test_windows_that_no_pattern_gives_are_refused(tmp_path, capsys):
    convert_to_hf(MODELS["2026"][0], tmp_path / "hf", MODELS["2026"][1])
    for windows, found in (([129, 129, 65, 257], "layer_windows is [129, 129, 65, 257]"), (None, "layer_windows is None")):
        edit_config(layer_windows=windows)(tmp_path / "hf")
        assert main(["to-nanochat", str(tmp_path / "hf"), str(tmp_path / "out")]) == 2
        assert_one_line(capsys, found)
    assert not (tmp_path / "out").exists()


def test_other_windows_than_the_original_ones_are_written_down_anew(tmp_path):
    convert_to_hf(MODELS["2026"][0], tmp_path / "hf", MODELS["2026"][1])
    edit_config(layer_windows=layer_windows("SL", 4, 256))(tmp_path / "hf")
    convert_to_nanochat(tmp_path / "hf", tmp_path / "out")
    meta = read_checkpoint(tmp_path / "out")[1]
    assert meta["model_config"]["window_pattern"] == "SL"
    assert meta["user_config"] == load_json(MODELS["2026"][0] / "meta_000000.json")["user_config"]


def test_a_base_without_nanochats_files_is_refused(copy, tmp_path, capsys):
    _, hf = copy
    (tmp_path / "base").mkdir()
    assert main(["to-nanochat", str(hf), str(tmp_path / "out"), "--base", str(tmp_path / "base")]) == 2
    assert_one_line(capsys, "holds neither nanochat_extra.safetensors (a converted model) nor model_<step>.pt")


def test_a_nanochat_checkpoint_is_pointed_to_the_other_direction(tmp_path, capsys):
    assert main(["to-nanochat", str(MODELS["2025"][0]), str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "It is a nanochat checkpoint: chatsft.convert to-hf reads it.")
    assert main(["to-nanochat", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "absent is not a folder")
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_output_is_refused_and_left_as_it_is(converted, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("precious")
    assert main(["to-nanochat", str(converted[1]), str(tmp_path)]) == 2
    assert_one_line(capsys, "exists and is not an empty folder")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_write_that_fails_halfway_leaves_nothing_behind(converted, tmp_path, capsys, monkeypatch):
    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chatsft.convert.save_nanochat_tokenizer", disk_full)
    assert main(["to-nanochat", str(converted[1]), str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "No space left on device")
    assert list(tmp_path.iterdir()) == []
