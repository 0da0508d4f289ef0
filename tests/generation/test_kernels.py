"""The kernels without a GPU: interpreted against the model's forward pass, and compiled for an H100."""

import pytest

from chatsft.generation.kernel_step import MULTIPROCESSORS, choose_tile
from tests.generation.triton_process import check, needs_triton

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"year": "2026", "dtype": "float32", "splits": 2, "few": [32, 2]}, 1e-5),
        pytest.param({"year": "2026", "dtype": "float32", "splits": 1}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"year": "2026", "dtype": "float32", "splits": 2, "lengths": [33]}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"year": "2025", "dtype": "float32", "splits": 2, "few": [64, 1]}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"year": "2025", "dtype": "float32", "splits": 8, "num_attention_heads": 2}, 1e-5, marks=pytest.mark.slow),
        pytest.param(
            {"year": "2026", "dtype": "float16", "splits": 2, "num_attention_heads": 2, "final_logit_softcapping": None},
            5e-3,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"year": "2025", "dtype": "float32", "splits": 1, "rotary_dtype": "bfloat16", "final_logit_softcapping": None, "chosen": True},
            1e-5,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"year": "2026", "dtype": "float32", "splits": 2, "num_hidden_layers": 1, "layer_windows": [12], "value_embedding_layers": [0]},
            1e-5,
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_interpreted_kernels_give_the_models_logits(options, tolerance, tmp_path):
    found = check("kernel_checks", "agree", tmp_path, **options)
    assert found["moved_alike"]
    assert found["lengths"] == ([34] if "lengths" in options else [34, 1, 4, 0])
    assert found["difference"] < tolerance


@pytest.mark.parametrize(
    "options",
    [
        {"year": "2026", "num_rows": 32, "early": True},
        pytest.param({"year": "2026", "num_rows": 128}, marks=pytest.mark.slow),
        pytest.param({"year": "2025", "num_rows": 1, "weights": "float32"}, marks=pytest.mark.slow),
        pytest.param({"year": "2026", "num_rows": 128, "weights": "float32"}, marks=pytest.mark.slow),
        pytest.param({"year": "2025", "num_rows": 64, "weights": "float32", "dtype": "float32"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_an_h100_and_fits_into_it(options, tmp_path):
    compiled = check("kernel_checks", "compile", tmp_path, **options)
    assert {kernel["kernel"] for kernel in compiled} == {"embed", "project", "attend", "advance"}
    assert all(kernel["early"] == options.get("early", False) for kernel in compiled)
    products = [kernel for kernel in compiled if kernel["kernel"] == "project"]
    several_rows, few_rows = options["num_rows"] > 1, options["num_rows"] == 32
    assert all(kernel["async_loads"] for kernel in compiled if kernel["kernel"] == "attend")
    assert {bool(kernel["async_loads"]) for kernel in products} == (
        {False, True} if few_rows else {several_rows}
    )  # the head has many outputs
    assert all(kernel["tensor_cores"] == (several_rows and options.get("dtype") != "float32") for kernel in products)


@pytest.mark.parametrize("num_inputs", [48, 128, 512, 768, 1280, 1664, 2048, 3072, 5120, 6656, 8192])
@pytest.mark.parametrize("num_outputs", [48, 512, 1280, 3840, 5120, 8192])
def test_few_rows_load_no_block_beyond_the_inputs(num_outputs, num_inputs):
    tile = choose_tile(32, num_outputs, num_inputs, 2)
    assert num_inputs % tile.splits == 0
    num_blocks = -(-num_inputs // tile.splits // tile.num_inputs)
    assert 1 <= tile.preload <= num_blocks
    assert tile.ahead <= num_blocks
    assert tile.splits * -(-num_outputs // tile.num_outputs) <= max(2 * MULTIPROCESSORS, -(-num_outputs // tile.num_outputs))
