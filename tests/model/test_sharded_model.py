"""The model under FSDP2: its loss and gradients are those of the whole model, compiled layers included."""

from unittest.mock import patch

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.trainer import sharded_precision
from tests.tiny_runs import VOCABULARY, build_model, whole


def shard(model: GPTForCausalLM, units: str, precision: str = "no") -> GPTForCausalLM:
    """Shard every layer and the rest ("plain"), the head by itself too ("head"), or embedding and tail as accelerate does ("tail")."""
    policy = sharded_precision(precision)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    if units == "head":
        fully_shard(model.lm_head, mp_policy=policy)
    if units == "tail":
        fully_shard(model.model.embed_tokens, mp_policy=policy)
        fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def batch(step: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "labels": torch.where(ids % 3 == 0, -100, ids)}


def losses_and_gradients(model: GPTForCausalLM) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Run three batches, the same on every rank, so that whatever a hook leaves behind shows in the next."""
    losses = []
    for step in range(3):
        model.zero_grad()
        loss = model(**batch(step), use_cache=False, skip_logits=True).loss
        loss.backward()
        losses.append(loss.item())
    return losses, {name: whole(param.grad) for name, param in model.named_parameters()}


def run_sharded(generation: str, units: str, compiled: bool):
    model = shard(build_model(generation).train(), units)
    assert all(isinstance(param, DTensor) for param in model.parameters())
    if compiled:
        model.model.compile_layers()
    torch._dynamo.reset()
    counters.clear()
    with patch("torch._inductor.compile_fx.compile_fx", aot_eager):
        results = losses_and_gradients(model)
    torch._dynamo.reset()
    return *results, counters["stats"]["unique_graphs"], dict(counters["graph_break"])


@pytest.mark.parametrize(("units", "compiled"), [("plain", False), ("head", False), ("tail", False), ("tail", True)])
@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_a_sharded_model_gives_the_loss_and_gradients_of_the_whole(two_processes, generation, units, compiled):
    losses, gradients = losses_and_gradients(build_model(generation).train())
    for sharded_losses, sharded_gradients, graphs, breaks in two_processes.run(run_sharded, generation, units, compiled):
        assert sharded_losses == pytest.approx(losses, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(sharded_gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        if compiled:
            assert graphs == {"2025": 1, "2026": 3}[generation]  # one for each kind of layer: a window, a value embedding
            assert breaks == {}


def run_sharded_in_bfloat16(generation: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    return losses_and_gradients(shard(build_model(generation).train(), "tail", "bf16"))


@pytest.mark.parametrize(("generation", "tolerance"), [("2025", 1e-6), ("2026", 1e-3)])  # sharding rounds the lambdas of 2026 too
def test_a_sharded_model_in_bfloat16_computes_as_autocast_does(two_processes, generation, tolerance):
    with torch.autocast("cpu", torch.bfloat16):
        losses, gradients = losses_and_gradients(build_model(generation).train())
    for sharded_losses, sharded_gradients in two_processes.run(run_sharded_in_bfloat16, generation):
        assert sharded_losses == pytest.approx(losses, rel=tolerance)
        for name, gradient in gradients.items():
            assert sharded_gradients[name].dtype == torch.float32
            assert ((sharded_gradients[name] - gradient).norm() / gradient.norm()).item() < 0.1, name
