"""accelerate reads the launch configurations, and launches training with them."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import chatsft
from chatsft.checkpoints import find_damage, list_checkpoints
from tests.two_processes import free_port

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "accelerate_configs"
CONFIGS = {  # distributed type, machines, processes, precision, on the CPU
    "cpu": ("NO", 1, 1, "no", True),
    "ddp": ("MULTI_GPU", 1, 8, "bf16", False),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8, "bf16", False),
    "deepspeed_zero3": ("DEEPSPEED", 1, 8, "bf16", False),
    "fsdp2": ("FSDP", 1, 8, "bf16", False),
    "multi_node": ("MULTI_GPU", 2, 16, "bf16", False),
    "single_gpu": ("NO", 1, 1, "bf16", False),
}
QUICKSTART = [
    *("-m", "chatsft.train", "recipes/quickstart.yaml", "train_mixture=[{task: Arithmetic, size: 96}]", "max_steps=3"),
    *("eval_mixture=[{task: Arithmetic, split: test, size: 8}]", "per_device_train_batch_size=16", "save_strategy=steps", "save_steps=3"),
]


def launch_environment(name: str, *options: str) -> dict[str, str]:
    """Return what `accelerate launch` hands to a program, by accelerate's own functions."""
    words = [*options, "--main_process_port", "0", "--config_file", str(FOLDER / f"{name}.yaml"), "-m", "chatsft.train"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return prepare_deepspeed_cmd_env(args)[1]
    return prepare_multi_gpu_env(args) | {"NODE_RANK": str(getattr(args, "node_rank", 0)), "NPROC_PER_NODE": args.nproc_per_node}


def test_configs_are_those_the_documentation_names():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(CONFIGS)
    text = (ROOT / "docs" / "distributed.md").read_text()
    assert all(f"`{name}.yaml`" in text for name in CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_config(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    found = (config.distributed_type, config.num_machines, config.num_processes, config.mixed_precision, config.use_cpu)
    assert found == CONFIGS[name]


def test_fsdp2_shards_each_layer_and_saves_whole_checkpoints(monkeypatch):
    for key, value in launch_environment("fsdp2").items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap is None  # the model's own _no_split_modules
    assert chatsft.GPTForCausalLM._no_split_modules == ["GPTDecoderLayer"]
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_shards_by_its_stage(stage):
    environment = launch_environment(f"deepspeed_zero{stage}")
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL") == {"2": None, "3": "true"}[stage]


def test_a_machine_takes_its_rank_and_its_share_of_the_processes():
    environment = launch_environment("multi_node", "--machine_rank", "1", "--main_process_ip", "first")
    assert (environment["NODE_RANK"], environment["NPROC_PER_NODE"]) == ("1", "8")
    assert "machine_rank" not in yaml.safe_load((FOLDER / "multi_node.yaml").read_text())


def launch(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *words], cwd=ROOT, check=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (1, ("--config_file", "accelerate_configs/cpu.yaml")),
        (2, ("--config_file", "accelerate_configs/cpu.yaml", "--multi_gpu", "--num_processes", "2")),
        (2, ("--config_file", "accelerate_configs/ddp.yaml", "--mixed_precision", "no", "--num_processes", "2")),
    ],
    ids=["cpu", "cpu, two processes", "ddp, two processes"],
)
def test_the_quickstart_trains_under_accelerate_launch(tmp_path, processes, options):
    launch("--main_process_port", "0", *options, *QUICKSTART, f"output_dir={tmp_path}")
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), chatsft.GPTForCausalLM)
    assert len(list(tmp_path.glob("checkpoint-3/rng_state*.pth"))) == processes
    weights = load_file(tmp_path / "model.safetensors")
    assert any((weights[name] != start).any() for name, start in load_file(ROOT / "recipes/quickstart/model.safetensors").items())


@pytest.mark.slow
@pytest.mark.parametrize(("told", "code"), [("launcher", 1), ("one process", 0)])
def test_sigterm_ends_a_launch_with_a_checkpoint(tmp_path, told, code):
    options = ["--config_file", "accelerate_configs/cpu.yaml", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    words = [*options, *QUICKSTART, "max_steps=1000", "num_train_epochs=1000", "eval_on_start=false", f"output_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, "logging_steps=1"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as launcher:
        next(line for line in launcher.stdout if line.startswith("Step 00004"))
        children = psutil.Process(launcher.pid).children()
        os.kill(launcher.pid if told == "launcher" else children[1].pid, signal.SIGTERM)
        launcher.stdout.read()
        assert launcher.wait() == code
    assert find_damage(list_checkpoints(tmp_path)[0]) is None
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    port = str(free_port())
    config = ("--config_file", "accelerate_configs/multi_node.yaml", "--mixed_precision", "no", "--num_processes", "2")
    address = ("--main_process_ip", "127.0.0.1", "--main_process_port", port)

    def machine(rank: str) -> None:
        launch(*config, *address, "--machine_rank", rank, *QUICKSTART, f"output_dir={tmp_path}")

    with ThreadPoolExecutor() as machines:
        list(machines.map(machine, "01"))
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), chatsft.GPTForCausalLM)
    assert len(list(tmp_path.glob("checkpoint-3/rng_state*.pth"))) == 2
