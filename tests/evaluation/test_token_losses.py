import math

import pytest
import torch
from safetensors.torch import load_file

from chatsft.evaluation.metrics import load_metric
from chatsft.evaluation.token_losses import last_token_logits, token_byte_counts, token_losses
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from tests.model.oracle import FIXTURES, load_json, shift_labels


def recorded_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Build the two batches of the recorded bits per byte; two targets of the first are special tokens, which have no bytes."""
    inputs = load_file(FIXTURES / "model_v2/inputs.safetensors")
    tokenizer = load_nanochat_tokenizer(FIXTURES / "tokenizer/v2_4090")
    targets = inputs["targets_256"].long()
    targets[0, 5], targets[1, 9] = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")
    pairs = ((inputs["x_256"], targets), (inputs["x_short"], inputs["targets_short"]))
    return [(ids.long(), shift_labels(targets)) for ids, targets in pairs]


def test_bits_per_byte_equals_nanochat():
    model = load_nanochat_model(FIXTURES / "model_v2")
    byte_counts = token_byte_counts(load_nanochat_tokenizer(FIXTURES / "tokenizer/v2_4090"), counts_raw_bytes=True)
    nats, num_bytes = [], []
    for ids, targets in recorded_batches():
        nats += token_losses(model, ids, targets)[targets != -100].tolist()
        num_bytes += byte_counts[targets[targets != -100]].tolist()
    assert 0 in num_bytes
    recorded = load_json(FIXTURES / "model_v2/info.json.gz")["bpb"]
    bits = load_metric("bits_per_byte").compute(predictions=nats, references=num_bytes)["bits_per_byte"]
    assert bits == pytest.approx(recorded["bpb"], rel=1e-6)
    assert recorded["bpb_all_ignored"] == "inf"
    assert load_metric("bits_per_byte").compute(predictions=[], references=[])["bits_per_byte"] == math.inf


@pytest.mark.parametrize(("name", "counts_raw_bytes"), [("v1", False), ("v2_4090", True)])
def test_byte_counts_are_those_of_nanochats_file(name, counts_raw_bytes):
    folder = FIXTURES / "tokenizer" / name
    recorded = torch.load(folder / "token_bytes.pt")
    tokenizer = load_nanochat_tokenizer(folder)
    assert torch.equal(token_byte_counts(tokenizer, counts_raw_bytes), recorded.long())
    assert not torch.equal(token_byte_counts(tokenizer, not counts_raw_bytes), recorded.long())


def test_token_losses_are_those_of_the_models_own_loss():
    model = load_nanochat_model(FIXTURES / "model_v2")
    for ids, targets in recorded_batches():
        losses = token_losses(model, ids, targets)
        assert (losses[targets == -100] == 0).all()
        with torch.no_grad():
            expected = model(ids, shift_labels=targets, use_cache=False).loss
        torch.testing.assert_close(losses.sum() / (targets != -100).sum(), expected)
    nothing = torch.full_like(targets, -100)
    assert token_losses(model, ids, nothing).tolist() == torch.zeros(nothing.shape).tolist()


@pytest.mark.parametrize("folder", ["model_v1/gqa", "model_v2"])
def test_logits_at_the_ends_are_those_of_each_prompt_alone(folder):
    model = load_nanochat_model(FIXTURES / folder)
    prompts = [[3, 5, 7], [9] * 40, [11, 2]]
    with torch.no_grad():
        alone = torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    torch.testing.assert_close(last_token_logits(model, prompts), alone, rtol=1e-4, atol=1e-4)
