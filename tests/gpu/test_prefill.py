"""Prompts cached by the kernel on a GPU, whose attention is PyTorch's variable-length one, against the model's forward pass."""

import pytest
import torch

from chatsft.generation.decoder import Decoder, Workspace
from chatsft.generation.prefill import KernelPrefill, ModelPrefill
from tests.generation.models import build_model, random_prompts

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
WIDE = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": None, "max_position_embeddings": 512}
GROUPED = {"hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 1}


@pytest.mark.parametrize("year", ["2025", "2026"])
@pytest.mark.parametrize("fields", [WIDE, GROUPED, {"rotary_dtype": "bfloat16", **WIDE}], ids=["wide", "grouped", "bfloat16 rotary"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_prompts_of_any_length_fill_any_slots_as_by_the_model(year, fields, dtype):
    from tests.generation.prefill_checks import agree  # imports Triton, which not every system has

    found = agree(year, dtype, device="cuda", **fields)
    assert found["difference"] < 2e-2
    assert not found["touched_others"]


@pytest.mark.parametrize("year", ["2025", "2026"])
def test_prompts_are_cached_without_waiting(year):
    model = build_model(year, torch.bfloat16, **WIDE).cuda()
    with torch.no_grad():
        decoder = Decoder(model, Workspace(model, 4, 256))
        assert isinstance(decoder.fill, KernelPrefill)
        rows = [[2, 0], random_prompts([70, 5]), [200, 200]]
        decoder.start(*rows)
        try:
            torch.cuda.set_sync_debug_mode("error")
            decoder.start(*rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fields", [{"dtype": torch.float32, **WIDE}, {"dtype": torch.bfloat16}], ids=["float32", "heads of 12"])
def test_what_that_attention_does_not_take_is_left_to_the_model(fields):
    model = build_model("2025", **fields).cuda()
    assert isinstance(Decoder(model, Workspace(model, 1, 256)).fill, ModelPrefill)
