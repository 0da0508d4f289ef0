"""nanochat's checkpoint folders are read as nanochat reads them, and anything else is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatsft.model.nanochat_checkpoint import (
    CheckpointError,
    is_nanochat_checkpoint,
    layer_windows,
    load_nanochat_checkpoint,
    load_nanochat_model,
)
from tests.model.oracle import FIXTURES, assert_close, load_json

V1, V2 = FIXTURES / "model_v1" / "mha", FIXTURES / "model_v2"
V2_INFO = load_json(V2 / "info.json.gz")
HEAD = "lm_head.weight"


def write_checkpoint(folder: Path, tensors: dict, meta: dict, step: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    return folder


def stored(source: Path) -> tuple[dict, dict]:
    """Return the tensors and the meta of a recorded checkpoint, ready to be changed."""
    return torch.load(source / "model_000000.pt"), load_json(source / "meta_000000.json")


def copy_files(source: Path, folder: Path) -> Path:
    for name in ("model_000000.pt", "meta_000000.json"):
        shutil.copyfile(source / name, folder / name)
    return folder


def tensors_of_step(step: int) -> tuple[dict, dict]:
    tensors, meta = stored(V1)
    return {**tensors, HEAD: torch.full_like(tensors[HEAD], step)}, {**meta, "step": step}


def test_the_last_step_is_read_unless_one_is_named(tmp_path):
    for step in (9, 1000000, 650000):
        write_checkpoint(tmp_path, *tensors_of_step(step), step)
    for asked, step in ((None, 1000000), (9, 9), (650000, 650000)):
        checkpoint = load_nanochat_checkpoint(tmp_path, asked)
        assert (checkpoint.step, checkpoint.meta["step"]) == (step, step)
        assert checkpoint.state_dict[HEAD].unique().tolist() == [step]
    with pytest.raises(CheckpointError, match=r"no step 10\. Its steps are 9, 650000, 1000000"):
        load_nanochat_checkpoint(tmp_path, 10)


def test_a_folder_without_model_files_is_no_checkpoint(tmp_path):
    (tmp_path / "model.pt").touch()
    assert not is_nanochat_checkpoint(tmp_path)
    assert not is_nanochat_checkpoint(tmp_path / "absent")
    assert is_nanochat_checkpoint(V1)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=r"holds no model_<step>\.pt"):
            load_nanochat_checkpoint(folder)


def test_optimizer_files_and_strangers_in_the_folder_are_left_aside(tmp_path):
    copy_files(V1, tmp_path)
    for name in ("optim_000000.pt", "optim_000000_rank0.pt", "optim_000999_rank7.pt", "model_000999.pt.tmp", "notes.txt"):
        (tmp_path / name).write_text("not a checkpoint")
    checkpoint, expected = load_nanochat_checkpoint(tmp_path), load_nanochat_checkpoint(V1)
    assert checkpoint.step == 0
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.state_dict.items())


def test_names_of_a_compiled_model_and_rotary_buffers_change_nothing(tmp_path):
    tensors, meta = stored(V1)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()} | {"cos": torch.ones(3), "sin": torch.ones(3)}
    checkpoint, expected = load_nanochat_checkpoint(write_checkpoint(tmp_path, compiled, meta)), load_nanochat_checkpoint(V1)
    assert list(checkpoint.state_dict) == list(expected.state_dict)
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.state_dict.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.h.0.attn.c_k.weight": None}, r"lacks tensors .*: model\.layers\.0\.self_attn\.k_proj\.weight"),
        ({"transformer.h.2.attn.c_k.weight": torch.ones(32, 32)}, r"not part of the model .*: transformer\.h\.2\.attn\.c_k\.weight"),
        ({"transformer.h.0.ln.weight": torch.ones(32)}, r"not part of the model .*: transformer\.h\.0\.ln\.weight"),
        ({"value_embeds.1.weight": torch.ones(512, 32)}, r"not part of the model .*: value_embeds\.1\.weight"),
        (
            {"transformer.h.1.mlp.c_fc.weight": torch.ones(64, 32)},
            r"h\.1\.mlp\.c_fc\.weight has shape \(64, 32\).*\(128, 32\)",
        ),
        ({HEAD: torch.ones(576, 32)}, r"lm_head\.weight has shape \(576, 32\).*\(512, 32\)"),
        ({HEAD: torch.ones(511, 32)}, r"lm_head\.weight has shape \(511, 32\).*\(512, 32\)"),
        ({HEAD: torch.tensor(1.0)}, r"lm_head\.weight has shape \(\).*\(512, 32\)"),
    ],
)
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path, change, message):
    tensors, meta = stored(V1)
    tensors = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        load_nanochat_checkpoint(write_checkpoint(tmp_path, tensors, meta))


def test_a_2026_checkpoint_without_its_later_tensors_is_refused(tmp_path):
    tensors, meta = stored(V2)
    del tensors["smear_gate.weight"], tensors["value_embeds.3.weight"]
    with pytest.raises(CheckpointError, match=r"lacks tensors .*: model\.smear_gate\.weight, model\.value_embeddings\.3\.weight"):
        load_nanochat_checkpoint(write_checkpoint(tmp_path, tensors, meta))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_model_file_is_refused_in_one_line(tmp_path, kept):
    file = copy_files(V1, tmp_path) / "model_000000.pt"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"model_000000\.pt cannot be read .*damaged or cut short.*Copy it again") as raised:
        load_nanochat_checkpoint(tmp_path)
    assert "\n" not in str(raised.value)


class Trap:
    """Leaves a file behind when unpickled without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path):
    file, trace = copy_files(V1, tmp_path) / "model_000000.pt", tmp_path / "ran"
    torch.save({HEAD: Trap(trace)}, file)
    with pytest.raises(CheckpointError, match=r"model_000000\.pt holds something other than tensors") as raised:
        load_nanochat_checkpoint(tmp_path)
    assert "weights_only" not in str(raised.value)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {1: torch.ones(2)}, torch.ones(2)])
def test_a_model_file_of_another_kind_is_refused(tmp_path, content):
    torch.save(content, copy_files(V1, tmp_path) / "model_000000.pt")
    with pytest.raises(CheckpointError, match="does not hold a dictionary of tensors by name"):
        load_nanochat_checkpoint(tmp_path)


def test_a_missing_meta_file_is_named(tmp_path):
    (copy_files(V1, tmp_path) / "meta_000000.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta_000000\.json is missing"):
        load_nanochat_checkpoint(tmp_path)


FIELDS = {"sequence_len": 128, "vocab_size": 512, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 32}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "has no sequence_len, vocab_size, n_layer, n_head, n_kv_head, n_embd under model_config"),
        ('{"model_config": 3}', "has no sequence_len"),
        (json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 512}), "is not a nanochat meta file"),
        (json.dumps({"model_config": {**FIELDS, "n_experts": 8, "moe": True}}), "has moe, n_experts under model_config, which no known"),
        (json.dumps({"model_config": {**FIELDS, "n_layer": "2"}}), "n_layer = '2'"),
        (json.dumps({"model_config": {**FIELDS, "n_embd": -32}}), "n_embd = -32"),
        (json.dumps({"model_config": {**FIELDS, "n_head": 5}}), "hidden_size 32 does not split into 5"),
        (json.dumps({"model_config": {**FIELDS, "window_pattern": "SXL"}}), "window_pattern is 'SXL'"),
        (json.dumps({"model_config": {**FIELDS, "window_pattern": None}}), "window_pattern is None"),
    ],
)
def test_a_foreign_or_damaged_meta_file_is_refused(tmp_path, text, message):
    (copy_files(V1, tmp_path) / "meta_000000.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message):
        load_nanochat_checkpoint(tmp_path)


def test_layer_windows_equal_nanochats_window_table():
    table = V2_INFO["window_table"]
    assert len(table) == 216
    for row in table:  # nanochat counts the tokens before the token itself
        expected = [left + 1 for left, _ in row["window_sizes"]]
        assert layer_windows(row["window_pattern"], row["n_layer"], row["sequence_len"]) == expected, row


def test_a_2025_checkpoint_has_none_of_the_later_features():
    config = load_nanochat_checkpoint(V1).config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (512, 32, 2, 128)
    assert (config.rope_theta, config.query_key_scale, config.layer_windows, config.value_embedding_layers) == (10000, 1, None, None)
    assert not (config.residual_scaling or config.smear or config.backout)


def empty_2026_checkpoint(folder: Path, layers: int, vocab_size: int, rows: int) -> Path:
    """Write a checkpoint of zeros with nanochat's 2026 tensors, one head of two channels."""
    attention = dict.fromkeys(("c_q", "c_k", "c_v", "c_proj"), (2, 2))
    shapes = {"transformer.wte.weight": (rows, 2), HEAD: (rows, 2), "resid_lambdas": (layers,), "x0_lambdas": (layers,)}
    shapes |= {"smear_gate.weight": (1, 24), "smear_lambda": (1,), "backout_lambda": (1,)}
    for i in range(layers):
        shapes |= {f"transformer.h.{i}.attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"transformer.h.{i}.mlp.c_fc.weight": (8, 2), f"transformer.h.{i}.mlp.c_proj.weight": (2, 8)}
        if V2_INFO["has_ve"][str(layers)][i]:
            shapes |= {f"value_embeds.{i}.weight": (rows, 2), f"transformer.h.{i}.attn.ve_gate.weight": (1, 12)}
    fields = {"sequence_len": 64, "vocab_size": vocab_size, "n_layer": layers, "n_head": 1, "n_kv_head": 1, "n_embd": 2}
    meta = {"model_config": {**fields, "window_pattern": "SSSL"}}
    return write_checkpoint(folder, {name: torch.zeros(shape) for name, shape in shapes.items()}, meta)


@pytest.mark.parametrize("layers", [int(layers) for layers in V2_INFO["has_ve"]])
def test_value_embeddings_are_on_nanochats_layers(tmp_path, layers):
    config = load_nanochat_checkpoint(empty_2026_checkpoint(tmp_path, layers, 64, 64)).config
    assert config.value_embedding_layers == [i for i, has in enumerate(V2_INFO["has_ve"][str(layers)]) if has]


@pytest.mark.parametrize(("vocab_size", "rows"), [*((int(size), rows) for size, rows in V2_INFO["vocab_padding"].items()), (130, 192)])
def test_nanochats_padded_vocabularies_are_accepted_and_split_off(tmp_path, vocab_size, rows):
    checkpoint = load_nanochat_checkpoint(empty_2026_checkpoint(tmp_path, 1, vocab_size, rows))
    vocabulary = ["lm_head.weight", "model.embed_tokens.weight", "model.value_embeddings.0.weight"]
    assert {len(checkpoint.state_dict[name]) for name in vocabulary} == {vocab_size} == {checkpoint.config.vocab_size}
    assert {name: len(tensor) for name, tensor in checkpoint.padding.items()} == (
        dict.fromkeys(vocabulary, rows - vocab_size) if rows > vocab_size else {}
    )


def test_padding_rows_and_stored_dtypes_are_kept_apart_unchanged():
    tensors, _ = stored(V2)
    checkpoint = load_nanochat_checkpoint(V2)
    names = {"transformer.wte.weight": "model.embed_tokens.weight", HEAD: HEAD}
    names |= {f"value_embeds.{i}.weight": f"model.value_embeddings.{i}.weight" for i in (1, 3)}
    assert set(checkpoint.padding) == set(names.values())
    for theirs, ours in names.items():
        whole = torch.cat([checkpoint.state_dict[ours], checkpoint.padding[ours]])
        assert whole.dtype == tensors[theirs].dtype
        assert torch.equal(whole, tensors[theirs])
    assert checkpoint.padding[HEAD].any()
    assert {name for name, tensor in checkpoint.state_dict.items() if tensor.dtype == torch.bfloat16} == set(names.values()) - {HEAD}


def test_an_old_2026_checkpoint_is_patched_and_gives_nanochats_logits(tmp_path):
    tensors, meta = stored(V2)
    old = {f"_orig_mod.{name}": t.bfloat16() if "wte" in name or "value_embeds" in name else t for name, t in tensors.items()}
    for name in ("resid_lambdas", "x0_lambdas"):
        del old[f"_orig_mod.{name}"]
    del meta["model_config"]["window_pattern"]
    model = load_nanochat_model(write_checkpoint(tmp_path, old, meta))
    patched = V2_INFO["patched_old_checkpoint"]
    assert model.model.resid_lambdas.tolist() == patched["resid"]
    assert model.model.x0_lambdas.tolist() == patched["x0"]
    assert model.config.layer_windows == layer_windows(patched["window_pattern"], 4, 256)
    ids = load_file(V2 / "inputs.safetensors")["x_short"][:1].long()
    recorded = load_file(V2 / "outputs_patched_old_checkpoint.safetensors")["logits_short_row0_first8"]
    assert_close(model(ids).logits[:, :8], recorded)


def test_a_model_is_built_in_the_dtype_asked_for():
    model = load_nanochat_model(V2, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
