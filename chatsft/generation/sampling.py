"""Choose the next token of every row from its logits, on the device and without asking the host."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: 0 is greedy.
        top_k: sample among the most likely tokens; 0 is all of them.
    """

    temperature: float = 0.0
    top_k: int = 0

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return one id for each row of (rows, vocabulary) logits.

        Dividing the probabilities by exponential noise and taking the largest draws from them exactly, as torch.multinomial does, but
        can be captured in a CUDA graph.

        >>> Sampling().choose(torch.tensor([[1.0, 3.0, 3.0]])).tolist()
        [1]
        """
        if not self.temperature:
            return logits.argmax(-1)
        ids = None
        if 0 < self.top_k < logits.shape[-1]:
            logits, ids = logits.topk(self.top_k)
        probabilities = (logits / self.temperature).softmax(-1)
        drawn = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)
        return (drawn if ids is None else ids.gather(-1, drawn))[:, 0]
