"""The collate stage: rows become the tensors of one micro-batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import BaseImageProcessor

from chatsft.model.head_loss import IGNORED
from chatsft.model.processing_gpt import read_pixels


class FlatteningCollator:
    """Join rows end to end into one sequence of segments that cannot see each other, for packed training.

    Every tensor has the same shape in every batch, whatever the rows hold, so that a compiled model compiles once. What a row
    leaves free becomes a segment of its own without labels.

    Args:
        max_length: tokens a row is filled up to.
        pad_token_id: what it is filled with.
        max_segments: most conversations any row holds.
        loss_chunk: the positions that carry labels are padded to a multiple of this many.
    """

    def __init__(self, max_length: int, pad_token_id: int, max_segments: int, loss_chunk: int):
        self.max_length, self.pad_token_id, self.max_segments, self.loss_chunk = max_length, pad_token_id, max_segments, loss_chunk

    def __call__(self, rows: Sequence[dict]) -> dict:
        ids, labels = (np.full((len(rows), self.max_length), fill, np.int64) for fill in (self.pad_token_id, IGNORED))
        lengths = []
        for place, row in enumerate(rows):
            filled = len(row["input_ids"])
            ids[place, :filled], labels[place, :filled] = row["input_ids"], row["labels"]
            lengths += [row["seq_lengths"], [self.max_length - filled] if filled < self.max_length else []]
        ids, labels, lengths = ids.ravel(), labels.ravel(), np.concatenate(lengths).astype(np.int64)
        starts = lengths.cumsum() - lengths
        bounds = np.full(len(rows) * (self.max_segments + 1) + 1, lengths.sum(), np.int32)
        bounds[: len(lengths) + 1] = np.append(starts, lengths.sum())
        cu_seq_lens = torch.from_numpy(bounds)
        return {
            "input_ids": torch.from_numpy(ids)[None],
            "labels": torch.from_numpy(labels)[None],
            "position_ids": torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths))[None],
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
            "supervised_positions": _supervised_positions(labels, self.loss_chunk),
            "num_tokens": sum(len(row["input_ids"]) for row in rows),
        }


class EvaluationCollator:
    """Join rows end to end as FlatteningCollator does, without filling them up, and number the row of each supervised position.

    A row is what one number is wanted for: here the conversations whose mean loss is taken together.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict:
        lengths = np.concatenate([row["seq_lengths"] for row in rows])
        row = {name: np.concatenate([row[name] for row in rows]) for name in ("input_ids", "labels")} | {"seq_lengths": lengths}
        batch = FlatteningCollator(max(1, len(row["input_ids"])), self.pad_token_id, len(lengths), loss_chunk=1)([row])
        row_of_token = np.repeat(np.arange(len(rows)), [len(row["input_ids"]) for row in rows])
        longest = int(lengths.max(initial=1))
        return batch | {
            "max_length_q": longest,
            "max_length_k": longest,
            "row_ids": torch.from_numpy(row_of_token)[batch["supervised_positions"]],
        }


class PaddingCollator:
    """Pad one conversation a row on the right to the longest of the batch, as nanochat's 2025 loop does.

    No attention mask is made: under causal attention a real token never sees the padding after it. Empty rows are padding alone.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict:
        longest = max(1, *(len(row["input_ids"]) for row in rows))
        return {
            "input_ids": torch.from_numpy(np.stack([_pad(row["input_ids"], longest, self.pad_token_id) for row in rows])),
            "labels": torch.from_numpy(np.stack([_pad(row["labels"], longest, IGNORED) for row in rows])),
            "num_tokens": sum(len(row["input_ids"]) for row in rows),
        }


class ImageCollator:
    """Read the images of rows now, and give them beside what another collator makes of the rows, in the order of their placeholders.

    There are as many as the rows have. What is compiled, the layers, sees them as embeddings, whose shape is that of the tokens.
    """

    def __init__(self, collator: Callable[[Sequence[dict]], dict], image_processor: BaseImageProcessor):
        self.collator, self.image_processor = collator, image_processor

    def __call__(self, rows: Sequence[dict]) -> dict:
        urls = [url for row in rows for url in row["images"]]
        return self.collator(rows) | ({"pixel_values": read_pixels(urls, self.image_processor)} if urls else {})


def _pad(values: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=filler)


def _supervised_positions(labels: np.ndarray, multiple: int) -> torch.Tensor:
    """Find the positions whose next token is trained, padded with -1 to a multiple of so many.

    >>> _supervised_positions(np.array([-100, 7, 8, -100]), 4).tolist()
    [0, 1, -1, -1]
    """
    positions = np.flatnonzero(labels[1:] != IGNORED)
    return torch.from_numpy(np.pad(positions, (0, -len(positions) % multiple), constant_values=-1))
