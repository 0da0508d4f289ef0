"""Look at what chatsft finds on this machine: versions, GPUs, attention, the sandbox, disk space.

    chatsft doctor

Every line is ok, a note, or a fault with what to do; the exit code is 1 where there is a fault.
"""

import argparse
import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub import constants
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from transformers.utils.logging import set_verbosity_error

from chatsft.environment import GIB, describe_environment, installed_version
from chatsft.execution.__main__ import describe as describe_sandbox
from chatsft.execution.choice import check_sandboxes
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.flash_attention import has_flash_4
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.packed_attention import keeps_packed_apart, prepare_attention

OK, NOTE, FAULT = "ok", "note", "fault"
STYLES = {OK: "green", NOTE: "yellow", FAULT: "bold red"}
LITTLE_DISK_GIB = 10


class Finding(NamedTuple):
    """One line of the diagnosis."""

    topic: str
    state: str
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings as they come; 0 when no fault is among them, else 1."""
    make_parser().parse_args(argv)
    set_verbosity_error()
    console, states, topic = Console(highlight=False), [], None
    for finding in diagnose():
        name = finding.topic if finding.topic != topic else ""
        console.print(Text.assemble(f"{name:<12}", (f"{finding.state:<7}", STYLES[finding.state]), finding.text), soft_wrap=True)
        states.append(finding.state)
        topic = finding.topic
    console.print(f"\nfaults: {states.count(FAULT)}, notes: {states.count(NOTE)}")
    return int(FAULT in states)


def make_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="chatsft doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def diagnose() -> Iterator[Finding]:
    """Yield every finding, topic by topic."""
    yield from check_versions()
    yield from check_hardware()
    yield from check_attention()
    yield from check_sandbox()
    yield from check_disk()


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with what chatsft asks for."""
    yield Finding("versions", OK, f"chatsft {installed_version('chatsft')}, Python {describe_environment()['python']}")
    for requirement in sorted(map(Requirement, importlib.metadata.requires("chatsft") or []), key=lambda item: item.name):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check_requirement(requirement)


def check_requirement(requirement: Requirement) -> Finding:
    """Look for one package.

    >>> check_requirement(Requirement("no-such-package>=2")).text
    'no-such-package is not installed: pip install "no-such-package>=2"'
    """
    version = installed_version(requirement.name)
    install = f'pip install "{requirement.name}{requirement.specifier}"'
    if version is None:
        return Finding("versions", FAULT, f"{requirement.name} is not installed: {install}")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("versions", FAULT, f"{requirement.name} {version}, but {requirement.specifier} is needed: {install}")
    return Finding("versions", OK, f"{requirement.name} {version}")


def check_hardware() -> Iterator[Finding]:
    """List the GPUs, and the rest of the machine."""
    found = describe_environment()
    yield Finding("hardware", OK, f"{found['cpu_cores']} CPU cores, {found['memory_gib']} GiB of memory, {found['system']}")
    if not found["gpus"]:
        built = f"PyTorch is built for CUDA {found['cuda']} but sees none" if found["cuda"] else "this PyTorch is built without CUDA"
        yield Finding("hardware", NOTE, f"no GPU ({built}): the quickstart trains here in minutes, larger models want a GPU")
    for index, gpu in enumerate(found["gpus"]):
        text = f"GPU {index}: {gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['capability']}, CUDA {found['cuda']}"
        has_bf16 = float(gpu["capability"]) >= 8
        yield Finding("hardware", OK if has_bf16 else NOTE, text if has_bf16 else f"{text}: no bfloat16, set bf16: false")


def check_attention() -> Iterator[Finding]:
    """Prove on a small model of random weights, for every attention that can run here, that packed conversations do not see each other."""
    model = make_probe()
    prepare_attention(model, None, packing=True)
    chosen = model.config._attn_implementation
    for attention, is_there in available_attentions().items():
        use = " (chosen for packing)" if attention == chosen else ""
        if not is_there:
            yield Finding("attention", OK, f"{attention}: not on this machine")
        elif keeps_packed_apart(model, attention):
            yield Finding("attention", OK, f"{attention}{use}: keeps packed conversations apart")
        else:
            state = FAULT if use else NOTE
            yield Finding(
                "attention", state, f"{attention}{use}: packed conversations see each other, or it does not run. Set packing: false"
            )


def available_attentions() -> dict[str, bool]:
    """Tell which attentions can run here."""
    return {
        "eager": True,
        "sdpa": True,
        "varlen": True,
        "varlen_fa4": has_flash_4(),
        "flash_attention_2": torch.cuda.is_available() and is_flash_attn_2_available(),
        "flash_attention_3": torch.cuda.is_available() and is_flash_attn_3_available(),
    }


@torch.no_grad()
def make_probe() -> GPTForCausalLM:
    """Build a small model with everything that looks at neighbouring tokens, in the precision of training."""
    config = GPTConfig(
        vocab_size=64,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        value_embedding_layers=[1],
        residual_scaling=True,
        smear=True,
        backout=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(42)
        model = GPTForCausalLM(config)
        for parameter in model.parameters():  # some begin at zero, which would hide what they do
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to("cuda", torch.bfloat16) if torch.cuda.is_available() else model


def check_sandbox() -> Iterator[Finding]:
    """Say which sandbox generated code runs in, and why no stronger one."""
    faults = check_sandboxes()
    holds = any(fault is None and not sandbox.is_weak for sandbox, fault in faults.items())
    for sandbox, fault in faults.items():
        works = "runs, but code can leave it, so HumanEval needs --allow_weak_sandbox" if sandbox.is_weak else "holds"
        yield Finding("sandbox", OK if holds else NOTE, f"{describe_sandbox(sandbox)}: {fault or works}")


def check_disk() -> Iterator[Finding]:
    """Say how much room is left where chatsft writes."""
    places = {"here": Path.cwd(), "models from the Hub": Path(constants.HF_HUB_CACHE), "data": Path(HF_DATASETS_CACHE)}
    for name, path in {**places, "temporary files": Path(tempfile.gettempdir())}.items():
        free = shutil.disk_usage(existing(path)).free / GIB
        state = OK if free >= LITTLE_DISK_GIB else NOTE
        yield Finding("disk", state, f"{free:,.0f} GiB free for {name} ({path})" + ("" if state == OK else ": little for checkpoints"))


def existing(path: Path) -> Path:
    """Return the nearest folder that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


if __name__ == "__main__":
    sys.exit(main())
