"""Compiled layers give what the plain ones give, are compiled once, and stay out of evaluation."""

import pytest
import torch
from torch._dynamo.utils import counters

from chatsft.data.collator import FlatteningCollator
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.modeling_gpt import GPTForCausalLM, _compiled
from tests.data.test_collator import row

LATER = {
    "layer_windows": [9, 9, 33] * 2,
    "value_embedding_layers": [1, 3, 5],
    "query_key_scale": 1.2,
    "residual_scaling": True,
    "smear": True,
    "backout": True,
}
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at it
GRAPHS = {("2025", False): 1, ("2025", True): 1, ("2026", False): 3, ("2026", True): 1}


@pytest.fixture(autouse=True)
def _plain_backend(monkeypatch):
    """Capture graphs and run them as they are: what is counted is how often, not how fast."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs: graph)
    _compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield
    _compiled.cache_clear()
    torch._dynamo.reset()


def build(year: str) -> GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
    model = GPTForCausalLM._from_config(GPTConfig(**sizes, **(LATER if year == "2026" else {})), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.train()


def batches() -> list[dict]:
    collate = FlatteningCollator(max_length=32, pad_token_id=0, max_segments=3, loss_chunk=8)
    rows = [row(list(range(1, 12)), [5, 6, 7]), row(list(range(40, 60))), row()]
    return [{**collate(pair), "skip_logits": True, "use_cache": False} for pair in ([rows[0], rows[1]], [rows[1], rows[2]], [rows[2]] * 2)]


@pytest.mark.parametrize("year", ["2025", "2026"])
@pytest.mark.parametrize("together", [False, True])
def test_equal_layers_are_compiled_once_and_later_batches_and_evaluation_compile_nothing(year, together):
    model, plain = build(year), build(year)
    model.model.compile_layers(together)
    for batch in batches():
        del batch["num_tokens"]
        loss, expected = model(**batch).loss, plain(**batch).loss
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    model.eval()(torch.arange(9)[None])
    assert counters["stats"]["unique_graphs"] == GRAPHS[year, together]
    assert not counters["graph_break"]
