"""Validation loss on conversations: over all answers, in bits per byte, and turn by turn, with and without the turns before.

A model that makes use of a conversation finds its later answers easier with the history than without it; one that cannot follow a
conversation does not.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from chatsft.evaluation.problems import batch_by_length
from chatsft.evaluation.statistics import bits_per_byte
from chatsft.evaluation.task_evaluation import evaluating, own_share
from chatsft.evaluation.token_losses import MAX_BATCH_TOKENS, pad_right, token_byte_counts, token_losses
from chatsft.model.head_loss import IGNORED
from chatsft.model.tokenization_gpt import GPTTokenizer

TURNS = ("1", "2", "3 and later")
BYTE_DEFINITIONS = {"2025": False, "2026": True}
"""Whether a token counts its raw bytes, by the year of nanochat that does so."""


class Row(NamedTuple):
    """Token ids and, for each, the assistant turn whose answer it belongs to, from 1; 0 is not scored."""

    input_ids: list[int]
    turns: list[int]


class Scored(NamedTuple):
    """Scored tokens, in any order: the turn of each, its id, and its loss in nats."""

    turns: torch.Tensor
    token_ids: torch.Tensor
    losses: torch.Tensor


@dataclass(frozen=True)
class TurnLoss:
    """Mean token loss of the answers of a turn, with the conversation before it and with its own question alone."""

    turn: str
    num_tokens: int
    loss: float
    loss_without_history: float


@dataclass(frozen=True)
class ConversationReport:
    """The loss on conversations.

    Args:
        num_truncated: conversations that lost their end because they are longer than the context.
        token_loss: mean over all tokens of answers, in nats.
        bits_per_byte: of the same tokens but those without bytes, by nanochat's definition of each year.
        turns: those that occur.
    """

    num_conversations: int
    num_truncated: int
    num_tokens: int
    token_loss: float
    bits_per_byte: dict[str, float]
    turns: list[TurnLoss]


def evaluate_conversations(conversations: Iterable[list[dict]], model: PreTrainedModel, tokenizer: GPTTokenizer) -> ConversationReport:
    """Measure the loss of the assistant's tokens; every rank does its share and gets the whole report.

    Args:
        conversations: the messages of each.
    """
    context, num_truncated = model.config.max_position_embeddings, 0
    whole, alone = [], []
    for messages in conversations:
        row = number_turns(messages, tokenizer)
        num_truncated += len(row.input_ids) > context
        whole.append(Row(row.input_ids[:context], row.turns[:context]))
        alone += without_history(messages, whole[-1], tokenizer)
    with evaluating(model):
        scored, scored_alone = _score(whole, model), _score(alone, model)
    return ConversationReport(
        num_conversations=len(whole),
        num_truncated=num_truncated,
        num_tokens=len(scored.losses),
        token_loss=scored.losses.mean().item(),
        bits_per_byte={year: _bits_per_byte(scored, token_byte_counts(tokenizer, raw)) for year, raw in BYTE_DEFINITIONS.items()},
        turns=_compare_turns(scored, scored_alone),
    )


def number_turns(messages: list[dict], tokenizer: GPTTokenizer) -> Row:
    """Render a conversation and number what is trained of it by assistant turns."""
    ids, mask = tokenizer.render_conversation({"messages": messages}, max_tokens=None)
    opening, turn, turns = tokenizer.encode_special("<|assistant_start|>"), 0, []
    for token_id, is_trained in zip(ids, mask, strict=True):
        turn += token_id == opening
        turns.append(turn if is_trained else 0)
    return Row(ids, turns)


def without_history(messages: list[dict], whole: Row, tokenizer: GPTTokenizer) -> list[Row]:
    """Render every turn after the first on its own: the system message, the user's, the answer.

    What the context has cut off the whole conversation is not scored here either, so that both see the same tokens.
    """
    system = messages[: messages[0]["role"] == "system"]
    counts, rows = Counter(whole.turns), []
    for end in range(len(system) + 4, len(messages) + 1, 2):
        turn = (end - len(system)) // 2
        row = number_turns([*system, *messages[end - 2 : end]], tokenizer)
        positions = [position for position, scored in enumerate(row.turns) if scored][: counts[turn]]
        if positions:
            length = positions[-1] + 1
            rows.append(Row(row.input_ids[:length], [turn * bool(scored) for scored in row.turns[:length]]))
    return rows


def _score(rows: list[Row], model: PreTrainedModel) -> Scored:
    """Score the rows, this rank its share, and bring the scores of all ranks together."""
    scored = [Scored(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64))]
    for _, batch in own_share(batch_by_length(rows, lambda row: len(row.input_ids), max_tokens=MAX_BATCH_TOKENS)):
        scored.append(_score_batch(batch, model))
    return _join(gather_object([_join(scored)]))


def _score_batch(batch: list[Row], model: PreTrainedModel) -> Scored:
    input_ids, turns = pad_right([row.input_ids for row in batch]), pad_right([row.turns for row in batch])[:, 1:]
    targets = torch.where(turns > 0, input_ids[:, 1:], IGNORED)
    losses = token_losses(model, input_ids[:, :-1].to(model.device), targets.to(model.device)).double().cpu()
    return Scored(turns[turns > 0], targets[turns > 0], losses[turns > 0])


def _join(parts: list[Scored]) -> Scored:
    return Scored(*map(torch.cat, zip(*parts, strict=True)))


def _bits_per_byte(scored: Scored, byte_counts: torch.Tensor) -> float:
    return bits_per_byte(scored.losses.numpy(), byte_counts[scored.token_ids].numpy())


def _compare_turns(scored: Scored, alone: Scored) -> list[TurnLoss]:
    """Put the turns into their groups; without a history the first turn is what it is with it."""
    compared = []
    for group, name in enumerate(TURNS, 1):
        losses, losses_alone = (
            side.losses[side.turns.clamp(max=len(TURNS)) == group] for side in (scored, scored if group == 1 else alone)
        )
        if len(losses):
            compared.append(TurnLoss(name, len(losses), losses.mean().item(), losses_alone.mean().item()))
    return compared
