"""Tokens are drawn as often as they are likely, and only among those allowed."""

import pytest
import torch

from chatsft.generation.sampling import Sampling

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 3, 50])
def test_tokens_are_drawn_by_their_probability(temperature, top_k):
    torch.manual_seed(0)
    drawn = Sampling(temperature, top_k).choose(LOGITS.expand(40_000, -1))
    allowed = LOGITS if not 0 < top_k < 5 else LOGITS.masked_fill(LOGITS.topk(top_k).values[-1] > LOGITS, -torch.inf)
    expected = (allowed / temperature).softmax(-1)
    frequencies = drawn.bincount(minlength=5) / len(drawn)
    assert torch.allclose(frequencies, expected, atol=0.01)
    assert torch.equal(frequencies == 0, expected == 0)


def test_greedy_takes_the_first_of_the_largest():
    assert Sampling().choose(torch.tensor([[1.0, 5.0, 5.0], [5.0, 5.0, 1.0]])).tolist() == [1, 0]


def test_each_row_is_drawn_for_itself():
    drawn = Sampling(1.0, 2).choose(torch.tensor([[0.0, 0.0, -9.0], [-9.0, 0.0, 0.0]]).repeat(200, 1)).view(200, 2)
    assert set(drawn[:, 0].tolist()) == {0, 1}
    assert set(drawn[:, 1].tolist()) == {1, 2}
