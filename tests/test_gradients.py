"""A DDP model in whose gradients DDP has no part."""

from unittest.mock import patch

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from chatsft.gradients import local_gradients
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM, _compiled


def count_graphs(is_local: bool) -> int:
    """Train a step of two equal compiled layers, each larger than DDP's first bucket, and count what the compiler was given."""
    _compiled.cache_clear()
    torch._dynamo.reset()
    config = GPTConfig(vocab_size=32, hidden_size=256, num_hidden_layers=2, num_attention_heads=2)
    model = GPTForCausalLM._from_config(config, attn_implementation="sdpa").train()
    model.model.compile_layers()
    wrapped, graphs = DistributedDataParallel(model), []
    context = local_gradients(wrapped) if is_local else wrapped.no_sync()
    with patch("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graphs.append(graph) or graph), context:
        wrapped(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None], use_cache=False).loss.backward()
    _compiled.cache_clear()
    torch._dynamo.reset()
    return len(graphs)


@pytest.mark.parametrize(("is_local", "graphs"), [(True, 1), (False, 2)])  # by itself, torch cuts them: the reason for what is tested
def test_the_compiler_does_not_cut_layers_along_the_buckets_of_ddp(two_processes, is_local, graphs):
    assert two_processes.run(count_graphs, is_local) == [graphs, graphs]
