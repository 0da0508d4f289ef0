"""On a GPU, in bfloat16: packed conversations stay apart, and every way of computing stays in the bfloat16 band."""

import pytest
import torch

from chatsft.data.collator import FlatteningCollator, PaddingCollator
from chatsft.model.configuration_gpt import GPTConfig
from chatsft.model.flash_attention import has_flash_4
from chatsft.model.modeling_gpt import GPTForCausalLM
from tests.data.test_collator import row

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

LATER = {
    "rope_theta": 100000.0,
    "query_key_scale": 1.2,
    "layer_windows": [129, 257],
    "value_embedding_layers": [1],
    "residual_scaling": True,
    "smear": True,
    "backout": True,
}


def build(generation: str, attention: str) -> GPTForCausalLM:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=512,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **(LATER if generation == "2026" else {}),
    )
    model = GPTForCausalLM._from_config(config, attn_implementation=attention).cuda()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def random_rows() -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [[700, 9, 200], [1, 300, 640]]
    return [[torch.randint(0, 512, (n,), generator=generator).tolist() for n in row_lengths] for row_lengths in lengths]


def collate(rows: list[list[list[int]]]) -> dict:
    batch = FlatteningCollator(max_length=1024, pad_token_id=0, max_segments=4, loss_chunk=512)([row(*r) for r in rows])
    del batch["num_tokens"]
    return {key: value.cuda() if torch.is_tensor(value) else value for key, value in batch.items()}


def hidden(model: GPTForCausalLM, batch: dict) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "supervised_positions")}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model.model(**inputs, use_cache=False).last_hidden_state


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("attention", ["varlen", "sdpa", "flex_attention", *(["varlen_fa4"] if has_flash_4() else [])])
@pytest.mark.parametrize("compiled", [False, True])
def test_changing_one_conversation_changes_no_neighbour(generation, attention, compiled):
    torch._dynamo.reset()
    model, rows = build(generation, attention).train(), random_rows()
    if compiled and attention == "flex_attention":
        pytest.xfail("flex_attention compiles itself")
    if compiled:
        model.model.compile_layers()
    before = hidden(model, collate(rows))
    rows[0][1] = [(id + 1) % 512 for id in rows[0][1]]
    after = hidden(model, collate(rows))
    assert torch.equal(before[0, :700], after[0, :700])
    assert torch.equal(before[0, 709:], after[0, 709:])
    assert not torch.equal(before[0, 700:709], after[0, 700:709])


@pytest.mark.parametrize("generation", ["2025", "2026"])
@pytest.mark.parametrize("compiled", [False, True])
def test_packed_bfloat16_loss_and_gradients_are_those_of_padded_float32(generation, compiled):
    torch._dynamo.reset()
    packed, padded, rows = build(generation, "varlen").train(), build(generation, "sdpa").train(), random_rows()
    if compiled:
        packed.model.compile_layers()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = packed(**collate(rows), skip_logits=True, use_cache=False).loss
    batch = PaddingCollator(0)([row(conversation) for r in rows for conversation in r])
    reference = padded(batch["input_ids"].cuda(), labels=batch["labels"].cuda(), use_cache=False).loss
    assert abs(loss.item() - reference.item()) < 0.01
    loss.backward()
    reference.backward()
    for (name, a), b in zip(packed.named_parameters(), padded.parameters(), strict=True):
        if b.grad.norm() > 1e-6:
            assert torch.nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("together", [False, True])
def test_later_batches_do_not_recompile(together):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, rows = build("2026", "varlen").train(), random_rows()
    model.model.compile_layers(together)
    batches = [collate(rows), collate([rows[1], rows[0]]), collate([rows[0][:1], []]), collate([[], []])]
    for batch in batches:
        hidden(model, batch).sum().backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if together else 2)
    model.eval()
    hidden(model, batches[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if together else 2)
