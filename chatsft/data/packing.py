"""The pack stage: rendered conversations become rows.

A row holds whole conversations. Packing decides which; the tokens stay where rendering left them and are gathered when a row
is read, so a packed dataset costs no memory of its own and a resumed run seeks in no time.
"""

from collections.abc import Sequence
from itertools import chain

import datasets
import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from chatsft.model.head_loss import IGNORED


class ConversationRows(Dataset):
    """Rows of whole conversations, read as `input_ids`, `labels` (-100 = ignored), `seq_lengths` and, where there are any, `images`.

    Args:
        rendered: columns `input_ids` and `assistant_masks` (1 = trained), one conversation each; `images`, their paths and data URLs.
        rows: the conversations of each row, by index into `rendered`; an empty row is padding alone.
    """

    def __init__(self, rendered: datasets.Dataset, rows: Sequence[Sequence[int]]):
        self.rendered = rendered.select_columns(["input_ids", "assistant_masks"]).with_format("arrow")
        self.images = rendered.select_columns(["images"]) if "images" in rendered.column_names else None
        self.origins = rendered.select_columns(["origin"]) if "origin" in rendered.column_names else None
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        images = {} if self.images is None else {"images": list(chain(*self.images[list(self.rows[index])]["images"]))}
        if not len(self.rows[index]):
            return images | dict.fromkeys(("input_ids", "labels", "seq_lengths"), np.empty(0, np.int64))
        table = self.rendered[list(self.rows[index])]
        ids, masks = table["input_ids"].combine_chunks(), table["assistant_masks"].combine_chunks()
        input_ids, lengths = _flat(ids), ids.value_lengths().to_numpy().astype(np.int64)
        return images | {
            "input_ids": input_ids,
            "labels": conversation_labels(input_ids, _flat(masks), lengths),
            "seq_lengths": lengths,
        }

    def name_conversations(self, rows: Sequence[int]) -> list[str]:
        """Say where the conversations of some rows came from, as far as the data says."""
        conversations = [index for row in rows for index in self.rows[row]]
        return [] if self.origins is None else self.origins[conversations]["origin"]


def conversation_labels(input_ids: np.ndarray, assistant_masks: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Label the trained tokens of conversations, end to end, with their ids; the first of each has nothing before it to be predicted from.

    >>> conversation_labels(np.array([5, 6, 7, 8, 9]), np.array([1, 0, 1, 1, 1]), lengths=np.array([3, 2])).tolist()
    [-100, -100, 7, -100, 9]
    """
    labels = np.where(assistant_masks == 1, input_ids, IGNORED)
    labels[(lengths.cumsum() - lengths)[lengths > 0]] = IGNORED
    return labels


def conversation_lengths(rendered: datasets.Dataset) -> np.ndarray:
    """Count the tokens of each rendered conversation, reading list offsets instead of tokens."""
    column = rendered.select_columns(["input_ids"]).with_format("arrow")
    return np.concatenate(
        [np.empty(0, np.int64)] + [batch["input_ids"].combine_chunks().value_lengths().to_numpy() for batch in column.iter(10_000)]
    )


def single_rows(num_conversations: int) -> list[list[int]]:
    """Give each conversation a row of its own, in order."""
    return [[index] for index in range(num_conversations)]


def fill_up(rows: list[list[int]], rows_multiple: int) -> list[list[int]]:
    """Add empty rows up to a multiple: where rows do not go round, processes would repeat some.

    >>> fill_up([[0], [1], [2]], 2)
    [[0], [1], [2], []]
    """
    return rows + [[]] * (-len(rows) % rows_multiple)


def pack_steps(lengths: Sequence[int], examples_per_step: int, capacity: int, rows_multiple: int = 1) -> tuple[list[list[int]], int]:
    """Pack the conversations of each optimizer step among themselves, so that packing never changes what a step contains.

    Every step gets the same number of rows (the most that any step needs, rounded up to rows_multiple); the rest are empty.

    Args:
        lengths: tokens per conversation, each at most `capacity`.
        capacity: tokens a row holds.
        rows_multiple: rows that one micro-batch takes over all processes.

    Returns:
        The rows of all steps in order, and the number of rows per step.

    >>> pack_steps([3, 2, 2, 1, 4], examples_per_step=4, capacity=4)
    ([[0, 3], [1, 2], [4], []], 2)
    """
    steps = [range(start, min(start + examples_per_step, len(lengths))) for start in range(0, len(lengths), examples_per_step)]
    packed = [_first_fit_decreasing(step, lengths, capacity) for step in steps]
    most = max(len(rows) for rows in packed)
    rows_per_step = -(-most // rows_multiple) * rows_multiple
    return [row for rows in packed for row in rows + [[]] * (rows_per_step - len(rows))], rows_per_step


def pack_rows(lengths: Sequence[int], capacity: int, buffer_size: int = 100) -> list[list[int]]:
    """Pack conversations across the whole mixture: each row takes, again and again, the longest of the next ones that still fits.

    Among equally long ones the earliest wins. This is nanochat's 2026 packing, except that every conversation is placed.

    >>> pack_rows([3, 2, 2, 1, 4], capacity=4)
    [[4], [0, 3], [1, 2]]
    """
    rows, waiting, following = [], [], 0
    while waiting or following < len(lengths):
        row, room = [], capacity
        while True:
            refill = buffer_size - len(waiting)
            waiting.extend(range(following, min(following + refill, len(lengths))))
            following = min(following + refill, len(lengths))
            fitting = [index for index in waiting if lengths[index] <= room]
            if not fitting:
                break
            longest = max(fitting, key=lambda index: lengths[index])
            waiting.remove(longest)
            row.append(longest)
            room -= int(lengths[longest])
        rows.append(row)
    return rows


def shuffle_rows(rows: list[list[int]], seed: int) -> list[list[int]]:
    """Shuffle packed rows, which otherwise come in runs of like lengths."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order]


def _first_fit_decreasing(indices: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows, rooms = [], []
    for index in sorted(indices, key=lambda index: -lengths[index]):
        place = next((place for place, room in enumerate(rooms) if lengths[index] <= room), None)
        if place is None:
            place = len(rows)
            rows.append([])
            rooms.append(capacity)
        rows[place].append(index)
        rooms[place] -= int(lengths[index])
    return rows


def _flat(lists: pa.Array) -> np.ndarray:
    """Return the values of an array of lists, end to end; arrow keeps them that way."""
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
