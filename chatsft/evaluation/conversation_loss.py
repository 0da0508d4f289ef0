"""Validation loss on conversations: over all answers, in bits per byte, and turn by turn, with and without the turns before.

A model that makes use of a conversation finds its later answers easier with the history than without it; one that cannot follow a
conversation does not.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from chatsft.evaluation.metrics import load_metric
from chatsft.evaluation.problems import batch_by_length
from chatsft.evaluation.task_evaluation import evaluating, own_share
from chatsft.evaluation.token_losses import MAX_BATCH_TOKENS, pad_right, token_byte_counts, token_losses
from chatsft.model.head_loss import IGNORED
from chatsft.model.tokenization_gpt import GPTTokenizer

TURNS = ("1", "2", "3 and later")
BYTE_DEFINITIONS = {"2025": False, "2026": True}
"""Whether a token counts its raw bytes, by the year of nanochat that does so."""


@dataclass(frozen=True)
class Scored:
    """Token ids and, for each, the assistant turn whose answer it belongs to, from 1; 0 is not scored."""

    input_ids: list[int]
    turns: list[int]


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
        scored = score_turns(messages, tokenizer)
        num_truncated += len(scored.input_ids) > context
        whole.append(Scored(scored.input_ids[:context], scored.turns[:context]))
        alone += without_history(messages, whole[-1], tokenizer)
    with evaluating(model):
        sums, bits = _sum_losses(whole, model, tokenizer)
        sums_alone, _ = _sum_losses(alone, model, tokenizer)
    num_tokens = sum(count for _, count in sums.values())
    return ConversationReport(
        num_conversations=len(whole),
        num_truncated=num_truncated,
        num_tokens=num_tokens,
        token_loss=_mean(sum(nats for nats, _ in sums.values()), num_tokens),
        bits_per_byte=bits,
        turns=_compare_turns(sums, sums_alone),
    )


def score_turns(messages: list[dict], tokenizer: GPTTokenizer) -> Scored:
    """Render a conversation and number what is trained of it by assistant turns."""
    ids, mask = tokenizer.render_conversation({"messages": messages}, max_tokens=None)
    opening, turn, turns = tokenizer.encode_special("<|assistant_start|>"), 0, []
    for token_id, is_trained in zip(ids, mask, strict=True):
        turn += token_id == opening
        turns.append(turn if is_trained else 0)
    return Scored(ids, turns)


def without_history(messages: list[dict], whole: Scored, tokenizer: GPTTokenizer) -> list[Scored]:
    """Render every turn after the first on its own: the system message, the user's, the answer.

    What the context has cut off the whole conversation is not scored here either, so that both see the same tokens.
    """
    system = messages[: messages[0]["role"] == "system"]
    counts, rows = Counter(whole.turns), []
    for end in range(len(system) + 4, len(messages) + 1, 2):
        turn = (end - len(system)) // 2
        row = score_turns([*system, *messages[end - 2 : end]], tokenizer)
        positions = [position for position, scored in enumerate(row.turns) if scored][: counts[turn]]
        if positions:
            length = positions[-1] + 1
            rows.append(Scored(row.input_ids[:length], [turn * bool(scored) for scored in row.turns[:length]]))
    return rows


def _sum_losses(
    rows: list[Scored], model: PreTrainedModel, tokenizer: GPTTokenizer
) -> tuple[dict[int, tuple[float, int]], dict[str, float]]:
    """Return for each turn the summed loss and the tokens it is over, and bits per byte by definition."""
    byte_counts = {year: token_byte_counts(tokenizer, raw).to(model.device) for year, raw in BYTE_DEFINITIONS.items()}
    last = max((max(row.turns) for row in rows), default=0)
    nats = torch.zeros(last + 1, dtype=torch.float64, device=model.device)
    counts = torch.zeros(last + 1, dtype=torch.long, device=model.device)
    pieces = {year: [] for year in byte_counts}
    for _, batch in own_share(batch_by_length(rows, lambda row: len(row.input_ids), max_tokens=MAX_BATCH_TOKENS)):
        targets, turns, losses = _batch_losses(batch, model)
        nats.index_add_(0, turns, losses.double())
        counts += turns.bincount(minlength=last + 1)
        for year, lengths in byte_counts.items():
            num_bytes = lengths[targets]
            pieces[year].append(torch.stack([losses.double()[num_bytes > 0].sum(), num_bytes.sum()]))
    share = (nats.tolist(), counts.tolist(), {year: [piece.tolist() for piece in drawn] for year, drawn in pieces.items()})
    shares = gather_object([share])
    sums = {turn: (sum(nats[turn] for nats, _, _ in shares), sum(counts[turn] for _, counts, _ in shares)) for turn in range(1, last + 1)}
    return sums, {year: _bits_per_byte([piece for _, _, drawn in shares for piece in drawn[year]]) for year in byte_counts}


def _batch_losses(batch: list[Scored], model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the ids of all scored tokens of a batch, their turns and their losses."""
    input_ids, turns = pad_right([row.input_ids for row in batch]), pad_right([row.turns for row in batch])[:, 1:]
    targets = torch.where(turns > 0, input_ids[:, 1:], IGNORED).to(model.device)
    losses = token_losses(model, input_ids[:, :-1].to(model.device), targets)
    is_target = targets != IGNORED
    return targets[is_target], turns.to(model.device)[is_target], losses[is_target]


def _bits_per_byte(pieces: list[list[float]]) -> float:
    nats, num_bytes = ([piece[column] for piece in pieces] for column in (0, 1))
    return load_metric("bits_per_byte").compute(predictions=nats, references=list(map(int, num_bytes)))["bits_per_byte"]


def _compare_turns(sums: dict[int, tuple[float, int]], sums_alone: dict[int, tuple[float, int]]) -> list[TurnLoss]:
    """Put the turns into their groups; without a history the first turn is what it is with it."""
    compared = []
    for place, name in enumerate(TURNS, 1):
        members = [turn for turn in sums if turn == place or (place == len(TURNS) and turn > place)]
        num_tokens = sum(sums[turn][1] for turn in members)
        alone = sums if place == 1 else sums_alone
        if num_tokens:
            loss, loss_alone = (_mean(sum(table[turn][0] for turn in members), num_tokens) for table in (sums, alone))
            compared.append(TurnLoss(name, num_tokens, loss, loss_alone))
    return compared


def _mean(total: float, count: int) -> float:
    return total / count if count else float("nan")
