"""A Python in which only torch, transformers and what these two require can be imported."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement


def required_distributions(names: list[str]) -> set[str]:
    """Follow the requirements of distributions, without their extras."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # one of several ways to meet a requirement
            continue
        found.add(name)
        waiting += [r.name for r in map(Requirement, requirements) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def make_clean_environment(folder: Path, *more: str) -> Path:
    """Link the files of torch, transformers, more distributions and their requirements into a folder of their own."""
    folder.mkdir()
    for name in required_distributions(["torch", "transformers", *more]):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def run_clean(environment: Path, program: str, cwd: Path, **variables: str) -> str:
    """Run a program there and return what it printed; its working folder is cwd."""
    path = f"import sys\nsys.path.insert(0, {str(environment)!r})\n"
    settings = {**os.environ, "HF_HOME": str(cwd / "hf_home"), "HF_MODULES_CACHE": str(cwd / "modules"), **variables}
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + program], cwd=cwd, env=settings, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout
