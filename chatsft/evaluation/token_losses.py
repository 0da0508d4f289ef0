"""What a model expects next: logits where they are asked for, and the loss of each token, without a batch's full logits."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from chatsft.model.head_loss import CHUNK, IGNORED
from chatsft.model.nanochat_tokenizer import encoding_of, token_bytes
from chatsft.model.tokenization_gpt import GPTTokenizer

MAX_BATCH_TOKENS = 32_768
"""Tokens of a batch where only the trunk runs over all of them: enough to fill a GPU, little enough for its memory."""


def pad_right(rows: list[list[int]], filler: int = 0) -> torch.Tensor:
    """Make a (rows, longest) tensor. No mask is needed: a causal model never sees the padding after a token.

    >>> pad_right([[5], [6, 7]]).tolist()
    [[5, 0], [6, 7]]
    """
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


@torch.no_grad()
def last_token_logits(model: PreTrainedModel, prompts: list[list[int]]) -> torch.Tensor:
    """Return the logits of what follows each prompt, (prompts, vocabulary); the head runs at these positions alone."""
    hidden_states = model.base_model(input_ids=pad_right(prompts).to(model.device), use_cache=False).last_hidden_state
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    return _head_logits(model, hidden_states[torch.arange(len(prompts), device=model.device), ends])


@torch.no_grad()
def token_losses(model: PreTrainedModel, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each target in nats.

    Args:
        input_ids: (batch, length).
        targets: (batch, length), the id that follows each position, -100 where none is asked for.

    Returns:
        (batch, length) in float32, 0 where there is no target.
    """
    hidden_states = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    is_target = targets != IGNORED
    chunks = zip(hidden_states[is_target].split(CHUNK), targets[is_target].split(CHUNK), strict=True)
    losses = [F.cross_entropy(_head_logits(model, hidden), ids, reduction="none") for hidden, ids in chunks]
    return torch.zeros(targets.shape, device=targets.device).masked_scatter(is_target, torch.cat(losses))


def token_byte_counts(tokenizer: GPTTokenizer, counts_raw_bytes: bool) -> torch.Tensor:
    """Return the bytes of each token, as nanochat's token_bytes.pt has them: special tokens have none.

    Args:
        counts_raw_bytes: nanochat's definition of 2026; that of 2025 counts a piece of a broken character as 3.
    """
    encoding = encoding_of(tokenizer.backend_tokenizer, tokenizer.name_or_path)
    counts = token_bytes(encoding["mergeable_ranks"], counts_raw_bytes)
    return torch.tensor(counts + [0] * len(encoding["special_tokens"]))


def _head_logits(model: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    logits = model.get_output_embeddings()(hidden_states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)  # other models' configurations may not know it
    return logits if cap is None else cap * torch.tanh(logits / cap)
