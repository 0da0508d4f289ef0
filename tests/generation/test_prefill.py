"""The prefill kernel without a GPU: interpreted against the model's forward pass, and compiled for an H100."""

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
    command = [sys.executable, "-m", "tests.generation.prefill_checks", what, json.dumps(options)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


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
    found = check("agree", tmp_path, **options)
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
    assert check("compile", tmp_path, **options) == [{"wide_loads": True, "wide_stores": True}] * num_kernels
