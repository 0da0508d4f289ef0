"""FlashAttention 4 is called with what it takes, and differentiated; a stand-in computes what its kernels would."""

import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chatsft.model import attention, flash_attention
from chatsft.model.attention import varlen_attention_forward
from chatsft.model.flash_attention import INTERFACE, flash_4_varlen, has_flash_4

BOUNDS = torch.tensor([0, 5, 12, 16, 16], dtype=torch.int32)


def attend(query, key, value, bounds, scale, left):
    """Return the weights, (heads, tokens, tokens), and the logarithm of their normalizer."""
    tokens = torch.arange(len(query))
    segment, distance = torch.searchsorted(bounds.long(), tokens, right=True), tokens[:, None] - tokens
    seen = (distance >= 0) & (segment[:, None] == segment) & (distance <= (len(query) if left is None else left))
    scores = (torch.einsum("qhd,khd->hqk", query, key) * scale).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def stand_in_forward(q, k, v, *, softmax_scale, causal, return_lse, cu_seqlens_q, cu_seqlens_k, **options):
    assert causal == ("window_size_left" not in options)
    assert options.pop("window_size_right", 0) == 0
    assert (options.pop("max_seqlen_q"), options.pop("max_seqlen_k")) == (8, 8)
    assert return_lse
    weights, logsumexp = attend(q, k, v, cu_seqlens_q, softmax_scale, options.get("window_size_left"))
    return torch.einsum("hqk,khd->qhd", weights, v), logsumexp, None


def stand_in_backward(q, k, v, out, dout, lse, *, softmax_scale, causal, deterministic, cu_seqlens_q, cu_seqlens_k, **options):
    assert out.shape == dout.shape == q.shape
    assert lse.shape == (q.shape[1], q.shape[0])
    weights, _ = attend(q, k, v, cu_seqlens_q, softmax_scale, options.get("window_size_left"))
    of_scores = weights * (torch.einsum("qhd,khd->hqk", dout, v) - (dout * out).sum(-1).t()[..., None]) * softmax_scale
    of_query, of_key = torch.einsum("hqk,khd->qhd", of_scores, k), torch.einsum("hqk,qhd->khd", of_scores, q)
    return of_query, of_key, torch.einsum("hqk,qhd->khd", weights, dout), None


@pytest.fixture
def kernels(monkeypatch):
    module = types.ModuleType(INTERFACE)
    module._flash_attn_fwd, module._flash_attn_bwd = stand_in_forward, stand_in_backward
    monkeypatch.setitem(sys.modules, INTERFACE, module)


def random_states() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 2, 8, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sliding_window", [None, 3])
@pytest.mark.parametrize("compiled", [False, True])
def test_output_and_gradients_are_those_of_attention_segment_by_segment(sliding_window, compiled):
    run = torch.compile(flash_4_varlen, backend="aot_eager", fullgraph=True) if compiled else flash_4_varlen
    states, reference = random_states(), random_states()
    output = run(*states, BOUNDS, 8, 0.3, -1 if sliding_window is None else sliding_window - 1)
    expected, _ = varlen_attention_forward(
        None, *(tensor.transpose(0, 1)[None] for tensor in reference), None, 0.3, sliding_window, BOUNDS, max_length_q=8
    )
    torch.testing.assert_close(output, expected[0])
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected[0] * weights).sum().backward()
    for tensor, other in zip(states, reference, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad)


def test_without_the_package_or_its_gpu_it_is_not_chosen(monkeypatch):
    assert not has_flash_4()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(flash_attention, "INTERFACE", "no_such_package.interface")
    assert not has_flash_4()


@pytest.mark.usefixtures("kernels")
def test_it_is_chosen_where_it_is_installed_on_a_gpu_it_was_made_for(monkeypatch):
    sys.modules[INTERFACE].__spec__ = types.SimpleNamespace(name=INTERFACE)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for capability, chosen in {(8, 0): False, (9, 0): True, (10, 0): True, (12, 0): False}.items():
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda capability=capability: capability)
        assert has_flash_4() is chosen


@pytest.mark.parametrize("heads", [4, 2])
def test_a_gpus_kernel_gets_views_of_the_states(heads):
    taken = []
    with FakeTensorMode():
        bounds = torch.tensor([0, 16], dtype=torch.int32)
        sizes = [(1, count, 16, 32) for count in (4, heads, heads)]
        states = [torch.empty(size, dtype=torch.bfloat16, device="cuda") for size in sizes]
        kernel = lambda *inputs: taken.extend(inputs[:3]) or inputs[0]  # noqa: E731
        output, _ = varlen_attention_forward(None, *states, None, cu_seq_lens_q=bounds, kernel=kernel)
    assert output.shape == (1, 16, 4, 32)
    assert [tuple(each.shape) for each in taken] == [(16, 4, 32)] * 3
    shares = [a.untyped_storage()._cdata == b.untyped_storage()._cdata for a, b in zip(taken, states, strict=True)]
    assert shares == [True, heads == 4, heads == 4]  # fewer heads of keys are repeated


def test_gradients_of_the_states_are_views_of_those_of_the_kernel(monkeypatch):
    gradients = torch.ones(3, 16, 4, 8)
    taken = []
    monkeypatch.setattr(attention, "_segment_by_segment", lambda *inputs: taken.extend(inputs[:3]) or inputs[0])
    states = [torch.zeros(1, 4, 16, 8, requires_grad=True) for _ in range(3)]
    varlen_attention_forward(None, *states, None, cu_seq_lens_q=torch.tensor([0, 16], dtype=torch.int32))
    received = torch.autograd.grad(taken, states, list(gradients))
    assert {each.untyped_storage().data_ptr() for each in received} == {gradients.data_ptr()}
