"""The prefill kernel without a GPU: interpreted against the model's forward pass, and compiled for an H100."""

import pytest

from tests.generation.triton_process import check, needs_triton

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"year": "2026", "dtype": "float32"}, 1e-5),
        pytest.param({"year": "2025", "dtype": "float32", "num_attention_heads": 3}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"year": "2026", "dtype": "float32", "rotary_dtype": "bfloat16"}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"year": "2025", "dtype": "bfloat16", "rotary_dtype": "bfloat16"}, 2e-2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_prompts_of_any_length_fill_any_slots_as_by_the_model(options, tolerance, tmp_path):
    found = check("prefill_checks", "agree", tmp_path, **options)
    assert found["difference"] < tolerance
    assert not found["touched_others"]


@pytest.mark.parametrize(
    ("options", "num_kernels"),
    [
        ({"year": "2026"}, 2),
        pytest.param({"year": "2025"}, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_kernel_compiles_for_an_h100_and_moves_16_bytes_at_a_time(options, num_kernels, tmp_path):
    assert check("prefill_checks", "compile", tmp_path, **options) == [{"wide_loads": True, "wide_stores": True}] * num_kernels
