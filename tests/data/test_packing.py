"""Packing places every conversation once, and never changes what a step contains."""

import numpy as np
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from chatsft.data.packing import ConversationRows, conversation_lengths, pack_rows, pack_steps, shuffle_rows, single_rows

LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=60)


def rendered(*conversations: tuple[list[int], list[int]]) -> Dataset:
    return Dataset.from_dict({"input_ids": [ids for ids, _ in conversations], "assistant_masks": [mask for _, mask in conversations]})


def test_a_row_joins_its_conversations_and_labels_what_is_trained():
    data = rendered(([5, 6, 7], [0, 1, 1]), ([8, 9], [1, 1]), ([3], [0]))
    rows = ConversationRows(data, [[1, 0], [2], []])
    assert {key: value.tolist() for key, value in rows[0].items()} == {
        "input_ids": [8, 9, 5, 6, 7],
        "labels": [-100, 9, -100, 6, 7],
        "seq_lengths": [2, 3],
    }
    assert rows[2]["input_ids"].tolist() == [] and rows[2]["seq_lengths"].tolist() == []
    assert len(rows) == 3


def test_lengths_are_read_from_a_selected_dataset():
    data = rendered(([5, 6, 7], [0, 1, 1]), ([8, 9], [1, 1]), ([3], [0]))
    assert conversation_lengths(data.select([2, 0, 0])).tolist() == [1, 3, 3]
    assert single_rows(2) == [[0], [1]]


@given(LENGTHS, st.integers(1, 9), st.integers(1, 3))
def test_each_step_holds_exactly_its_own_conversations(lengths, examples_per_step, multiple):
    rows, rows_per_step = pack_steps(lengths, examples_per_step, 16, multiple)
    assert rows_per_step % multiple == 0
    assert len(rows) % rows_per_step == 0
    for step in range(len(rows) // rows_per_step):
        members = sorted(index for row in rows[step * rows_per_step : (step + 1) * rows_per_step] for index in row)
        assert members == list(range(step * examples_per_step, min((step + 1) * examples_per_step, len(lengths))))
    assert all(sum(lengths[index] for index in row) <= 16 for row in rows)


@given(LENGTHS)
def test_packing_across_the_mixture_places_every_conversation_once(lengths):
    rows = pack_rows(lengths, 16, buffer_size=7)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 16 for row in rows)


def test_shuffling_rows_depends_on_the_seed_alone():
    rows = single_rows(50)
    assert shuffle_rows(rows, 1) == shuffle_rows(rows, 1) != shuffle_rows(rows, 2)
    assert sorted(shuffle_rows(rows, 1)) == rows


def test_packing_takes_the_longest_that_fits_first():
    assert pack_rows([5, 9, 6, 10, 1], 16) == [[3, 2], [1, 0, 4]]
    assert np.sum([len(row) for row in pack_rows([16] * 5, 16)]) == 5
