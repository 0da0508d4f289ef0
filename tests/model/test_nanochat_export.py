"""What is written has nanochat's names, order and fields, and other architectures are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.nanochat_checkpoint import (
    CheckpointError,
    layer_windows,
    load_nanochat_checkpoint,
    nanochat_names,
    padded_rows,
    window_pattern,
)
from chatsft.model.nanochat_export import model_fields, nanochat_tensors, save_nanochat_checkpoint, sft_meta
from tests.model.oracle import FIXTURES, load_json

V1 = FIXTURES / "model_v1"
CHECKPOINTS = [V1 / "mha", V1 / "gqa", FIXTURES / "train_v1" / "mid_checkpoint", FIXTURES / "model_v2"]
V2_INFO = load_json(FIXTURES / "model_v2" / "info.json.gz")
LONG = st.sampled_from([64, 128, 256, 1000, 1024, 2048])


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_names_come_in_nanochats_order(folder):
    assert list(nanochat_names(load_nanochat_checkpoint(folder).config)) == list(torch.load(folder / "model_000000.pt"))


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_fields_are_the_recorded_ones(folder):
    recorded = load_json(folder / "meta_000000.json")["model_config"]
    config = load_nanochat_checkpoint(folder).config
    assert model_fields(config, recorded) == recorded
    assert list(model_fields(config)) == list(recorded)


@pytest.mark.parametrize("vocab_size", V2_INFO["vocab_padding"])
def test_vocabularies_are_padded_as_recorded(vocab_size):
    assert padded_rows(int(vocab_size)) == V2_INFO["vocab_padding"][vocab_size]


@given(pattern=st.text("SL", min_size=1, max_size=8), num_layers=st.integers(1, 24), sequence_len=LONG)
def test_a_pattern_is_found_that_gives_the_windows(pattern, num_layers, sequence_len):
    windows = layer_windows(pattern, num_layers, sequence_len)
    found = window_pattern(windows, sequence_len)
    assert layer_windows(found, num_layers, sequence_len) == windows
    assert len(found) <= max(len(pattern), 1)


@given(windows=st.lists(st.sampled_from([65, 129, 257, 1025]), min_size=1, max_size=6))
def test_windows_are_refused_exactly_where_no_pattern_gives_them(windows):
    patterns = ["".join("SL"[number >> i & 1] for i in range(len(windows))) for number in range(2 ** len(windows))]
    if windows in [layer_windows(pattern, len(windows), 256) for pattern in patterns]:
        assert layer_windows(window_pattern(windows, 256), len(windows), 256) == windows
    else:
        with pytest.raises(CheckpointError, match="which no window_pattern of nanochat gives"):
            window_pattern(windows, 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 100}, "intermediate_size is 100, nanochat has 3072"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is None, nanochat has 15.0"),
        ({"smear": True}, "smear is True, nanochat has False"),
        ({"residual_scaling": True, "layer_windows": [2049] * 12}, "rope_theta is 10000.0, nanochat has 100000.0; query_key_scale is 1.0"),
        ({"layer_windows": [2049] * 12}, "layer_windows is"),
    ],
)
def test_an_architecture_of_no_generation_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        model_fields(GPTConfig(**changes))


def test_a_2025_model_keeps_padding_only_where_it_had_some():
    checkpoint = load_nanochat_checkpoint(FIXTURES / "model_v1" / "mha")
    assert len(nanochat_tensors(checkpoint.config, checkpoint.state_dict, {}, {})["lm_head.weight"]) == 512
    padded = nanochat_tensors(checkpoint.config, checkpoint.state_dict, {}, {"lm_head.weight": torch.ones(64, 32)})["lm_head.weight"]
    assert padded.shape == (576, 32)
    assert padded[512:].eq(1).all()


def test_the_files_are_named_by_step(tmp_path):
    save_nanochat_checkpoint(tmp_path, {"a": torch.ones(1)}, {"step": 1234567}, 1234567)
    save_nanochat_checkpoint(tmp_path, {"a": torch.ones(1)}, {"step": 7}, 7)
    names = {"meta_000007.json", "meta_1234567.json", "model_000007.pt", "model_1234567.pt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "meta_000007.json").read_text() == '{\n  "step": 7\n}'


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_the_meta_has_the_fields_that_nanochats_fine_tuning_writes(generation):
    recorded = load_json(FIXTURES / "convert" / f"sft_meta_{generation}.json")
    recorded = {name: value for name, value in recorded.items() if not name.endswith("_acc")}  # of tasks that ran in between
    evaluation = {name: recorded[name] for name in ("val_loss", "val_bpb") if name in recorded}
    both = {"val_loss": 9.0, "val_bpb": 9.0, **evaluation}
    meta = sft_meta(recorded["model_config"], recorded["step"], both, recorded.get("user_config", {}))
    assert list(meta.items()) == list(recorded.items())
