import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from chatsft.adapters import add_adapter
from chatsft.arguments import ModelArguments
from chatsft.evaluation.model_copy import copy_for_evaluation
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from tests.evaluation.recorded_model import load_model, load_tokenizer
from tests.model.oracle import FIXTURES

IDS = torch.arange(3, 60)[None]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("folder", ["model_v1/gqa", "model_v2"])
def test_a_copy_gives_the_same_logits_from_weights_of_its_own(folder):
    model = load_nanochat_model(FIXTURES / folder).train()
    expected = logits(model)
    state = torch.get_rng_state()
    copied = copy_for_evaluation(model, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, copied.training) == (True, False)
    assert torch.equal(logits(copied), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(logits(model), expected)
    assert not {parameter.data_ptr() for parameter in model.parameters()} & {parameter.data_ptr() for parameter in copied.parameters()}


def test_a_copy_can_be_rounded():
    model = load_model()
    copied = copy_for_evaluation(model, torch.bfloat16)
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.bfloat16}
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    assert torch.equal(logits(copied), logits(rounded))


def test_what_autocast_has_put_around_the_model_stays_behind(monkeypatch):
    model = copy.deepcopy(load_model())
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # of all accelerators of a process
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    assert "forward" in vars(prepared)
    copied = copy_for_evaluation(prepared, torch.float32)
    assert "forward" not in vars(copied)
    assert torch.equal(logits(copied), logits(load_model()))


def test_the_copy_of_an_adapter_has_it_merged():
    base = copy.deepcopy(load_model())
    arguments = ModelArguments("base", lora_r=4, lora_modules_to_save=["embed_tokens"])
    adapted = add_adapter(base, load_tokenizer(), arguments)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    copied = copy_for_evaluation(adapted, torch.float32)
    assert type(copied) is type(load_model())
    adapted.eval()
    torch.testing.assert_close(logits(copied), logits(adapted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(copied), logits(load_model()), atol=1e-2)
    assert any("lora_A" in name for name, _ in adapted.named_parameters())


SHARDED = """
import torch
from torch.distributed.fsdp import fully_shard
from chatsft.evaluation.model_copy import copy_for_evaluation
from tests.evaluation.recorded_model import load_model
torch.distributed.init_process_group("gloo")
ids = torch.arange(3, 60)[None]
expected = load_model()(ids).logits
model = load_model()
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
copied = copy_for_evaluation(model, torch.float32)
if torch.distributed.get_rank() == 1:  # one rank alone can run it
    assert torch.equal(copied(ids).logits, expected)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_model_that_is_split_over_ranks_is_copied_in_full(tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "sharded.py")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(launch, check=True, env=environment, timeout=300)
