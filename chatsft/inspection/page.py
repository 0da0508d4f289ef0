"""The preview as a page: statistics, and conversations with their tokens."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from chatsft.data.rendering import first_tokens
from chatsft.inspection.statistics import Counts
from chatsft.inspection.tables import COLUMNS, cells, describe_bands, percent
from chatsft.inspection.tokens import Token, fold_images, name_images, read_tokens, split_messages
from chatsft.pages import save_page


def save_preview_page(
    path: Path,
    title: str,
    rendered: Dataset,
    counts: Mapping[str, Counts],
    warnings: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num: int,
) -> None:
    """Write the page with `num` conversations.

    Args:
        rendered: the whole mixture in training order, without a cut.
    """
    chosen = choose_rows(rendered["source"], num)
    total = sum(counts.values(), start=Counts())
    save_page(
        path,
        "preview.html",
        title=title,
        max_length=max_length,
        tokenizer=type(tokenizer).__name__,
        warnings=warnings,
        columns=list(COLUMNS),
        sources=[(source, cells(count)) for source, count in {**counts, "total": total}.items()],
        bands=describe_bands(),
        names=list(counts),
        shown=f"{len(chosen):,}",
        total=f"{len(rendered):,}",
        cards=[describe_card(rendered[row], row, len(rendered), tokenizer, max_length) for row in chosen],
    )


def choose_rows(sources: Sequence[str], num: int) -> list[int]:
    """Choose the first rows of every source, as many of each as `num` and the sources' sizes allow, in training order.

    >>> choose_rows(["a", "a", "a", "a", "b", "a", "a", "b"], 5)
    [0, 1, 2, 4, 7]
    """
    by_source = defaultdict(list)
    for row, source in enumerate(sources):
        by_source[source].append(row)
    turns = sorted((turn, row) for rows in by_source.values() for turn, row in enumerate(rows[:num]))
    return sorted(row for _, row in turns[:num])


def describe_card(row: dict, index: int, total: int, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict:
    """Return what the page shows of a conversation."""
    kept = first_tokens(row["input_ids"], tokenizer, max_length)
    ids, mask = row["input_ids"][kept], row["assistant_masks"][kept]
    numbered = fold_images(enumerate(read_tokens(ids, mask, tokenizer)))
    places = iter(numbered)
    messages = [[next(places) for _ in message] for message in split_messages([token for _, token in numbered])]
    return {
        "source": row["source"],
        "origin": row["origin"] + name_images(row),
        "place": f"{index + 1:,} of {total:,}",
        "num_tokens": f"{len(ids):,}",
        "num_trained": f"{sum(mask):,}",
        "share": percent(sum(mask) / max(len(mask), 1), 0),
        "num_cut": len(row["input_ids"]) - len(ids),
        "messages": [
            [
                (part, [describe_token(token, place) for place, token in tokens])
                for part, tokens in groupby(message, lambda item: item[1].part)
            ]
            for message in messages
        ],
    }


def describe_token(token: Token, place: int) -> dict[str, str]:
    """Return the text of a token, its look, and what the pointer on it shows.

    >>> describe_token(Token(257, "hi", True, False, ""), 3)
    {'text': 'hi', 'classes': 'y', 'title': 'id 257, token 3'}
    """
    classes = " ".join(name for name, has in (("y", token.trained), ("s", token.special)) if has)
    return {"text": token.text.replace("\n", "⏎\n"), "classes": classes, "title": f"id {token.id}, token {place}"}
