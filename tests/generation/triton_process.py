"""Checks of Triton kernels in a process of their own: Triton decides when it is imported whether it interprets or compiles."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Triton is made for Linux alone; setup.cfg's dev extra brings it there.
needs_triton = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no Triton for this system")


def check(module: str, what: str, tmp_path: Path, **options) -> dict | list:
    """Run a check of a module of this package, with nothing compiled before."""
    assert find_spec("triton"), "pip install -e .[dev]"
    environment = os.environ | {"TRITON_INTERPRET": str(int(what == "agree")), "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.generation.{module}", what, json.dumps(options)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])
