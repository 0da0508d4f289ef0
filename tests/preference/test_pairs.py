"""Pairs: every layout of TRL, the model's own answers, and batches in which tool output counts for nothing."""

import json

import pytest
import torch

from chatsft.arguments import RecipeError
from chatsft.model.tokenization_gpt import ConversationError
from chatsft.preference import pairs
from chatsft.preference.arguments import PairArguments
from chatsft.preference.pairs import PairCollator, load_pairs, pair_conversations, render_pair
from tests.evaluation.recorded_model import load_model, load_tokenizer
from tests.preference.calculator_tasks import SUMS, answer

USER = {"role": "user", "content": "1+1?"}
GOOD, BAD = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
DATA = PairArguments([], num_samples=2, max_new_tokens=32)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 1.0},
        {"prompt": "1+1?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_layout_gives_two_conversations(row):
    assert pair_conversations(row) == ([USER, GOOD], [USER, BAD])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1+1?", "chosen": "2"}, "no pair in an object with prompt, chosen; expected prompt, chosen and rejected"),
        ({"prompt": "1+1?", "chosen": "2", "rejected": "2"}, "are the same, so there is nothing to prefer"),
        ({"prompt": "1+1?", "chosen": "2", "rejected": 3}, "rejected is a int, expected a text or messages"),
        ({"chosen": [USER, GOOD], "rejected": [USER | {"content": "?"}, BAD]}, "differ before their last message"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "chosen ends with a message of role 'user'"),
        ({"prompt": "1+1?", "chosen": [], "rejected": []}, "chosen is a list"),
    ],
)
def test_a_row_that_is_no_pair_is_an_error(row, message):
    with pytest.raises(ConversationError, match=message):
        pair_conversations(row)


def test_tool_output_of_an_answer_is_not_the_models_own():
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2"}]
    tokenizer = load_tokenizer()
    row = render_pair([USER, {"role": "assistant", "content": parts}], [USER, BAD], tokenizer)
    assert tokenizer.decode(row["prompt_ids"]) == "<|bos|><|user_start|>1+1?<|user_end|><|assistant_start|>"
    assert tokenizer.decode(row["rejected_ids"]) == "3<|assistant_end|>"
    own = [token for token, mask in zip(row["chosen_ids"], row["chosen_mask"], strict=True) if mask]
    assert tokenizer.decode(own) == "<|python_start|>1+1<|python_end|>2<|assistant_end|>"
    assert row["rejected_mask"] == [1] * len(row["rejected_ids"])


def test_a_batch_holds_preferred_answers_then_the_others():
    pair = {"prompt_ids": [5, 6], "chosen_ids": [7, 8, 9], "chosen_mask": [1, 0, 1], "rejected_ids": [4], "rejected_mask": [1]}
    batch = PairCollator(pad_token_id=0, max_length=None)([pair])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 0]]
    assert PairCollator(pad_token_id=0, max_length=4)([pair])["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 4, 0]]


def load(entries: list[dict], folders=()):
    return load_pairs("train_mixture", entries, DATA, list(folders), load_model(), load_tokenizer())


def test_pairs_of_a_file_name_the_line_that_is_wrong(tmp_path):
    rows = [{"prompt": "1+1?", "chosen": "2", "rejected": "3"}] * 3
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load([{"path": "pairs.jsonl", "start": 1, "repeat": 2}], [tmp_path])) == 4
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "1+1?", "chosen": "2"}) + "\n{\n")
    with pytest.raises(ConversationError, match=r"pairs.jsonl:2: no pair in an object with prompt, chosen; .*\n.*pairs.jsonl:3: not JSON"):
        load([{"path": "pairs.jsonl"}], [tmp_path])


def write(monkeypatch, answers: dict[int, list[list[int]]]) -> None:
    """Let the model answer the sums as given, in the order of the prompts."""
    monkeypatch.setattr(
        pairs, "generate_completions", lambda model, tokenizer, prompts, **options: [answers[i] for i in range(len(prompts))]
    )


def test_the_models_own_answers_pair_a_right_one_with_a_wrong_one(monkeypatch, capsys):
    right, wrong = ([answer(index, is_right) for index in range(4)] for is_right in (True, False))
    write(monkeypatch, {0: [wrong[0], right[0]], 1: [right[1], right[1]], 2: [wrong[2], wrong[2]], 3: [right[3], wrong[3]]})
    rows = load([SUMS])
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in rows] == [(right[0], wrong[0]), (right[3], wrong[3])]
    tokenizer = load_tokenizer()
    assert tokenizer.decode(rows[1]["prompt_ids"]) == "<|bos|><|user_start|>What is 5 and 5?<|user_end|><|assistant_start|>"
    own = [token for token, mask in zip(rows[0]["chosen_ids"], rows[0]["chosen_mask"], strict=True) if mask]
    assert tokenizer.decode(own) == "<|python_start|>2+2<|python_end|>\n#### 4<|assistant_end|>"
    assert "4 problems, mean reward 0.5000; 2 gave a pair" in capsys.readouterr().out


def test_answers_that_are_all_right_or_all_wrong_give_no_pair(monkeypatch):
    write(monkeypatch, {index: [answer(index, True)] * 2 for index in range(4)})
    with pytest.raises(RecipeError, match="train_mixture gives no pair"):
        load([SUMS])


def test_answers_are_the_same_however_they_are_shared_out():
    model, tokenizer = load_model(), load_tokenizer()
    prompts = [tokenizer.render_for_completion({"messages": [USER, GOOD]})] * 3
    state = torch.get_rng_state()
    first, second = (pairs.draw_answers(prompts, DATA, model, tokenizer) for _ in range(2))
    assert first == second
    assert [len(drawn) for drawn in first] == [2, 2, 2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("settings", "message"), [({"num_samples": 1}, "at least 2"), ({"temperature": 0.0}, "Set 1.0")])
def test_settings_that_give_no_two_answers_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        PairArguments([SUMS], **settings)
