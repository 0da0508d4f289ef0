"""The kernels without a GPU: interpreted against the model's forward pass, and compiled for an H100."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Triton is made for Linux alone; setup.cfg's dev extra brings it there.
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no Triton for this system")


def check(what: str, tmp_path: Path, **options) -> dict | list:
    """Run a check in a process of its own, with nothing compiled before."""
    assert find_spec("triton"), "pip install -e .[dev]"
    environment = os.environ | {"TRITON_INTERPRET": str(int(what == "agree")), "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.generation.kernel_checks", what, json.dumps(options)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"year": "2026", "dtype": "float32", "splits": 2}, 1e-5),
        ({"year": "2026", "dtype": "float32", "splits": 2, "lengths": [33]}, 1e-5),
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
    found = check("agree", tmp_path, **options)
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
    compiled = check("compile", tmp_path, **options)
    assert {kernel["kernel"] for kernel in compiled} == {"embed", "project", "attend", "advance"}
    assert all(kernel["early"] == options.get("early", False) for kernel in compiled)
    products = [kernel for kernel in compiled if kernel["kernel"] == "project"]
    several_rows = options["num_rows"] > 1
    assert all(bool(kernel["async_loads"]) == several_rows for kernel in products)
    assert all(kernel["tensor_cores"] == (several_rows and options.get("dtype") != "float32") for kernel in products)
