"""Collated batches have a constant shape, and packed batches hold conversations apart."""

import numpy as np
import pytest
import torch

from chatsft.data.collator import EvaluationCollator, FlatteningCollator, PaddingCollator
from chatsft.model.nanochat_checkpoint import load_nanochat_model
from tests.model.oracle import FIXTURES, assert_close


def row(*conversations: list[int]) -> dict:
    ids = np.concatenate([np.empty(0, np.int64), *map(np.array, conversations)]).astype(np.int64)
    labels = np.concatenate([np.empty(0, np.int64), *([-100, *c[1:]] for c in conversations)]).astype(np.int64)
    return {"input_ids": ids, "labels": labels, "seq_lengths": np.array([len(c) for c in conversations], np.int64)}


def test_a_flattened_batch_spells_out_segments_positions_and_labels():
    collate = FlatteningCollator(max_length=6, pad_token_id=9, max_segments=2, loss_chunk=4)
    batch = collate([row([1, 2, 3], [4, 5]), row([6, 7])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 9, 6, 7, 9, 9, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5, -100, -100, 7, -100, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 0, 1, 2, 3]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 6, 8, 12, 12]
    assert batch["supervised_positions"].tolist() == [0, 1, 3, 6]
    assert (batch["max_length_q"], batch["num_tokens"]) == (6, 7)


def test_every_flattened_batch_has_the_same_shapes():
    collate = FlatteningCollator(max_length=8, pad_token_id=0, max_segments=4, loss_chunk=16)
    batches = [collate(rows) for rows in ([row([1, 2], [3, 4], [5, 6], [7, 8])] * 2, [row(), row()], [row([1] * 8), row([2])])]
    shapes = [{key: value.shape for key, value in batch.items() if torch.is_tensor(value)} for batch in batches]
    assert shapes[0]["input_ids"] == (1, 16)
    for shape in shapes:
        del shape["supervised_positions"]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [len(batch["supervised_positions"]) for batch in batches] == [16, 0, 16]


def test_a_padded_batch_is_padded_on_the_right():
    batch = PaddingCollator(pad_token_id=9)([row([1, 2, 3]), row([4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, -100]]
    assert batch["num_tokens"] == 4


@pytest.mark.parametrize("folder", ["model_v1/mha", "model_v2"])
def test_packed_and_padded_batches_give_the_same_loss_and_gradients(folder):
    numbers = np.random.default_rng(0)
    conversations = [numbers.integers(1, 500, size).tolist() for size in (150, 9, 40, 1, 88)]
    packed, padded = load_nanochat_model(FIXTURES / folder), load_nanochat_model(FIXTURES / folder)
    packed.set_attn_implementation("varlen")
    flat = FlatteningCollator(max_length=200, pad_token_id=0, max_segments=3, loss_chunk=32)
    batches = flat([row(*conversations[:3]), row(*conversations[3:])]), PaddingCollator(0)([row(c) for c in conversations])
    for model, batch in zip((packed, padded), batches, strict=True):
        del batch["num_tokens"]
        model(**batch, skip_logits=True, use_cache=False).loss.backward()
    for a, b in zip(packed.parameters(), padded.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_an_evaluation_batch_is_not_filled_up_and_names_the_row_of_each_trained_token():
    batch = EvaluationCollator(pad_token_id=9)([row([1, 2, 3], [4, 5]), row(), row([6, 7, 8])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["supervised_positions"].tolist() == [0, 1, 3, 5, 6]
    assert batch["row_ids"].tolist() == [0, 0, 0, 2, 2]
    assert batch["cu_seq_lens_q"].tolist()[:4] == [0, 3, 5, 8]
    assert (batch["max_length_q"], batch["num_tokens"]) == (3, 8)


def test_an_evaluation_batch_of_empty_rows_trains_on_nothing():
    batch = EvaluationCollator(pad_token_id=9)([row(), row()])
    assert batch["input_ids"].tolist() == [[9]]
    assert batch["supervised_positions"].tolist() == batch["row_ids"].tolist() == []
