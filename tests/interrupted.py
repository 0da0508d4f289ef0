"""Training in a process that can be killed. A fork server imports everything once, so that a life costs a second."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.model.oracle import FIXTURES

ROOT = Path(__file__).parent.parent
CONVERSATIONS = FIXTURES / "train_v1" / "conversations.jsonl"
SETTINGS = [
    *(f"model_name_or_path={FIXTURES}/model_v1/mha", f"tokenizer_path={FIXTURES}/tokenizer/v1_512", "max_length=128", "packing=true"),
    *("loss_average=token", "target_examples_per_step=4", "per_device_train_batch_size=2", "eval_strategy=no", "eval_on_start=false"),
    *("max_steps=12", "eval_mixture=null", "save_strategy=steps", "save_steps=1", "save_total_limit=2"),
    f"train_mixture=[{{path: {CONVERSATIONS}, stop: 20}}, {{path: {CONVERSATIONS}, start: 20, repeat: 2}}]",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["chatsft.train", "tests.interrupted"])


def start(folder: Path, *overrides: str, moment: tuple | None = None, quiet: bool = False) -> multiprocessing.Process:
    """Start the train program on one core in a process of its own.

    Args:
        moment: a function, the number of its call at which the process sends itself a signal, and the signal if it is not SIGKILL.
    """
    words = [str(ROOT / "recipes" / "parity.yaml"), f"output_dir={folder}", *SETTINGS, *overrides]
    process = CONTEXT.Process(target=live, args=(words, moment, quiet))
    process.start()
    return process


def finish(process: multiprocessing.Process, seconds: float | None = 120) -> int | None:
    """Wait for a process and return its exit code; None if it is still running."""
    process.join(seconds)
    return process.exitcode


def live(words: list[str], moment: tuple | None, quiet: bool) -> None:
    if quiet:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    import torch

    from chatsft.train import main

    torch.set_num_threads(1)
    if moment is not None:
        name, *when = moment
        module, _, attribute = name.rpartition(".")
        owner = sys.modules[module] if module in sys.modules else _class(module)
        mock.patch.object(owner, attribute, dying(getattr(owner, attribute), *when)).start()
    sys.exit(main(words))


def dying(function: Callable, call: int, number: int = signal.SIGKILL) -> Callable:
    """Return a function that sends the process a signal at its n-th call."""
    calls = [0]

    def call_or_die(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return call_or_die


def _class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module], attribute)
