"""Kill a training run at random moments, again and again, and compare what comes out with a run that nobody killed.

    python -m tests.kill_test [--kills 20] [--seed 0]

Every life gets `resume_from_checkpoint=true` and a SIGKILL at a random moment: while it loads, in a step, in the middle of a checkpoint.
It writes one after every step. Kills while it loads are on top of the number wanted. At the end all losses, all other figures of the log
and all weights are compared bit by bit.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from chatsft.checkpoints import STAGING, find_damage, list_checkpoints
from chatsft.model_card import RECIPE_FILE
from tests.interrupted import finish, start

TIMINGS = {"tokens_per_second", "memory_gib", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.kill_test")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, kills, runs, moments = Path(folder) / "straight", 0, 0, dict.fromkeys(("loading", "in a step", "writing a checkpoint"), 0)
        time_life(straight)  # starts the server and fills caches
        whole_life = time_life(Path(folder) / "timed")
        compare(straight, Path(folder) / "timed")
        while kills < options.kills:
            runs += 1
            output = Path(folder) / f"killed-{runs}"
            kill_until_done(output, lambda: generator.uniform(0, 0.7 * whole_life), moments)
            kills = moments["in a step"] + moments["writing a checkpoint"]
            compare(straight, output)
    where = ", ".join(f"{number} while {moment}" for moment, number in moments.items())
    print(f"{sum(moments.values())} kills in {runs} runs ({where})")
    print("every run ended with the losses, the log and the weights of one nobody killed")
    return 0


def time_life(output: Path) -> float:
    """Return the seconds of a run that nobody kills."""
    begin = time.perf_counter()
    if finish(start(output, quiet=True)) != 0:
        raise SystemExit("a run without kills did not finish")
    return time.perf_counter() - begin


def kill_until_done(output: Path, draw_seconds: Callable[[], float], moments: dict[str, int]) -> None:
    """Give a run life after life, each of so many seconds, until one ends by itself; count what the kills met."""
    reached = 0
    while True:
        birth = time.time()
        life = start(output, "resume_from_checkpoint=true", quiet=True)
        code = finish(life, draw_seconds())
        if code == 0:
            return
        if code is not None:
            raise SystemExit(f"a resumed run ended with exit code {code}")
        life.kill()
        finish(life)
        moments[what_was_met(output, birth)] += 1
        reached = check_progress(output, reached)


def what_was_met(output: Path, birth: float) -> str:
    """Tell what a life was doing when it was killed; the first thing that training does is to write recipe.yaml."""
    if (output / STAGING).exists():
        return "writing a checkpoint"
    recipe = output / RECIPE_FILE
    return "in a step" if recipe.exists() and recipe.stat().st_mtime >= birth else "loading"


def check_progress(output: Path, reached: int) -> int:
    """See that every visible checkpoint is whole and that none is lost; return the step of the last."""
    present = list_checkpoints(output)
    damaged = {path.name: damage for path in present if (damage := find_damage(path)) is not None}
    last = max((int(path.name.partition("-")[2]) for path in present), default=0)
    if damaged or last < reached:
        raise SystemExit(f"after step {reached} was saved: damaged {damaged}, last checkpoint {last}")
    return last


def compare(straight: Path, output: Path) -> None:
    histories = [figures(folder) for folder in (straight, output)]
    if histories[0] != histories[1]:
        raise SystemExit(f"the logs differ: {[pair for pair in zip(*histories, strict=False) if pair[0] != pair[1]][:3]}")
    one, other = (load_file(folder / "model.safetensors") for folder in (straight, output))
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    if differing:
        raise SystemExit(f"the weights differ: {differing}")


def figures(folder: Path) -> list[dict]:
    """Read the log of a finished run without what depends on the clock."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in log.items() if name not in TIMINGS} for log in history]


if __name__ == "__main__":
    sys.exit(main())
