from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from chatsft.evaluation import conversation_loss as module
from chatsft.evaluation import evaluate_conversations, task_evaluation
from chatsft.evaluation.conversation_loss import Row, number_turns, without_history
from tests.evaluation.recorded_model import load_model, load_tokenizer


def talk(*texts: str, system: str | None = None) -> list[dict]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


TALKS = [
    talk("hi", "yes"),
    talk("one", "two", "three", "four four"),
    talk("a", "b", "c", "d", "e", "f", "g", "h", "and", system="Be brief."),
]


def plain_losses(messages: list[dict]) -> tuple[list[int], torch.Tensor]:
    """Return the mask of a conversation and the loss of each of its tokens, the plain way."""
    model, tokenizer = load_model(), load_tokenizer()
    ids, mask = tokenizer.render_conversation({"messages": messages}, max_tokens=None)
    ids = torch.tensor(ids)
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    return mask, F.pad(F.cross_entropy(logits[:-1], ids[1:], reduction="none"), (1, 0))


def last_answer_loss(messages: list[dict]) -> tuple[float, int]:
    """Sum the losses of the last answer, of what is trained of it."""
    mask, losses = plain_losses(messages)
    before = len(load_tokenizer().render_conversation({"messages": messages[:-1]}, max_tokens=None)[0])
    answer = torch.tensor(mask[before:]) == 1
    return losses[before:][answer].sum().item(), int(answer.sum())


def test_answers_are_numbered_by_turn():
    tokenizer = load_tokenizer()
    scored = number_turns(TALKS[1], tokenizer)
    texts = {turn: tokenizer.decode([i for i, t in zip(scored.input_ids, scored.turns, strict=True) if t == turn]) for turn in (1, 2)}
    assert texts == {1: "two<|assistant_end|>", 2: "four four<|assistant_end|>"}
    assert set(scored.turns) == {0, 1, 2}


def test_a_turn_alone_keeps_the_system_message_and_its_question():
    tokenizer = load_tokenizer()
    alone = without_history(TALKS[2], number_turns(TALKS[2], tokenizer), tokenizer)
    assert [tokenizer.decode(row.input_ids) for row in alone] == [
        f"<|bos|><|user_start|>Be brief.\n\n{question}<|user_end|><|assistant_start|>{answer}<|assistant_end|>"
        for question, answer in (("c", "d"), ("e", "f"), ("g", "h"))
    ]
    assert [set(row.turns) for row in alone] == [{0, 2}, {0, 3}, {0, 4}]
    assert without_history(TALKS[0], number_turns(TALKS[0], tokenizer), tokenizer) == []


def test_what_the_context_cuts_off_is_not_scored_alone_either():
    tokenizer = load_tokenizer()
    whole = number_turns(TALKS[1], tokenizer)
    cut = Row(whole.input_ids[:-1], whole.turns[:-1])
    [alone] = without_history(TALKS[1], cut, tokenizer)
    assert alone.turns.count(2) == cut.turns.count(2) == whole.turns.count(2) - 1
    gone = Row(whole.input_ids[:-5], [turn if turn < 2 else 0 for turn in whole.turns[:-5]])
    assert without_history(TALKS[1], gone, tokenizer) == []


def test_turns_have_the_losses_of_their_answers_with_and_without_history():
    report = evaluate_conversations(TALKS, load_model(), load_tokenizer())
    assert [turn.turn for turn in report.turns] == ["1", "2", "3 and later"]
    turns = {"1": [], "2": [], "3 and later": []}
    for messages in TALKS:
        start = messages[0]["role"] == "system"
        for number, end in enumerate(range(start + 2, len(messages) + 1, 2), 1):
            loss, count = last_answer_loss(messages[:end])
            alone, _ = last_answer_loss([*messages[:start], *messages[end - 2 : end]])
            turns[str(number) if number < 3 else "3 and later"].append((loss, alone, count))
    for turn in report.turns:
        losses, alone, counts = map(sum, zip(*turns[turn.turn], strict=True))
        assert turn.num_tokens == counts
        assert turn.loss == pytest.approx(losses / counts, rel=1e-5)
        assert turn.loss_without_history == pytest.approx(alone / counts, rel=1e-5)
    assert report.turns[0].loss == report.turns[0].loss_without_history
    assert report.turns[1].loss != pytest.approx(report.turns[1].loss_without_history, rel=1e-3)
    total = sum(loss for group in turns.values() for loss, _, _ in group)
    assert (report.num_conversations, report.num_tokens) == (3, sum(turn.num_tokens for turn in report.turns))
    assert report.token_loss == pytest.approx(total / report.num_tokens, rel=1e-5)


def test_bits_per_byte_leave_out_the_token_that_ends_an_answer():
    text = "yes, we can"
    mask, losses = plain_losses(talk("hi", text))
    report = evaluate_conversations([talk("hi", text)], load_model(), load_tokenizer())
    nats = losses[torch.tensor(mask) == 1][:-1].sum().item()
    expected = pytest.approx(nats / torch.tensor(2.0).log().item() / len(text), rel=1e-5)
    assert report.bits_per_byte == {"2025": expected, "2026": expected}


def test_the_two_definitions_differ_on_pieces_of_characters():
    report = evaluate_conversations([talk("hi", "\N{GRINNING FACE}")], load_model(), load_tokenizer())
    assert report.bits_per_byte["2025"] == pytest.approx(report.bits_per_byte["2026"] / 3)  # four bytes, each its own token


def test_a_conversation_beyond_the_context_is_cut_and_counted():
    model, tokenizer = load_model(), load_tokenizer()
    short, cut = number_turns(TALKS[0], tokenizer), number_turns(talk("hi", "word " * 400), tokenizer)
    report = evaluate_conversations([talk("hi", "word " * 400), TALKS[0]], model, tokenizer)
    assert report.num_truncated == 1
    assert report.num_tokens == sum(turn > 0 for turn in [*short.turns, *cut.turns[: model.config.max_position_embeddings]])


def test_shares_of_two_ranks_add_up_to_one_process(monkeypatch):
    model, tokenizer = load_model(), load_tokenizer()
    whole = evaluate_conversations(TALKS, model, tokenizer)
    monkeypatch.setattr(module, "MAX_BATCH_TOKENS", 1)  # a batch for each conversation
    shares = []
    for rank in range(2):
        monkeypatch.setattr(task_evaluation, "PartialState", lambda rank=rank: SimpleNamespace(process_index=rank, num_processes=2))
        shares.append(evaluate_conversations(TALKS, model, tokenizer))
    assert all(0 < share.num_tokens < whole.num_tokens for share in shares)
    assert sum(share.num_tokens for share in shares) == whole.num_tokens
    nats = sum(share.num_tokens * share.token_loss for share in shares)
    assert nats == pytest.approx(whole.num_tokens * whole.token_loss, rel=1e-6)
