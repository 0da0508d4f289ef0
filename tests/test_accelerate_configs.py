"""accelerate reads the launch configurations, and launches training with them."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM

import chatsft

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def test_configs_are_those_the_documentation_names():
    assert [config.stem for config in CONFIGS] == ["cpu", "ddp", "single_gpu"]


@pytest.mark.parametrize(
    ("name", "distributed_type", "num_processes", "mixed_precision", "use_cpu"),
    [("cpu", "NO", 1, "no", True), ("single_gpu", "NO", 1, "bf16", False), ("ddp", "MULTI_GPU", 8, "bf16", False)],
)
def test_accelerate_reads_config(name, distributed_type, num_processes, mixed_precision, use_cpu):
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert config.distributed_type == distributed_type
    assert (config.num_processes, config.num_machines) == (num_processes, 1)
    assert (config.mixed_precision, config.use_cpu) == (mixed_precision, use_cpu)


@pytest.mark.slow
def test_training_starts_under_accelerate_launch(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    settings = ["train_mixture=[{task: Arithmetic, size: 64}]", "eval_mixture=[{task: Arithmetic, split: test, size: 8}]"]
    program = ["-m", "chatsft.train", "recipes/quickstart.yaml", f"output_dir={tmp_path}", *settings]
    subprocess.run([*launch, *program], cwd=ROOT, check=True)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), chatsft.GPTForCausalLM)
