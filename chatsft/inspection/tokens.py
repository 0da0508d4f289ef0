"""A rendered conversation as tokens that people can read."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from chatsft.model.conversation import IMAGE_TOKEN, PARTS

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
PIECE = "·"
"""Shown for a token that is the beginning of a character; the token that ends it shows the character."""

OPENINGS = {opening: part for part, (opening, _, _) in PARTS.items() if opening}
CLOSINGS = {closing for _, closing, _ in PARTS.values() if closing}
MESSAGE_STARTS = ("<|user_start|>", "<|assistant_start|>")


class Token(NamedTuple):
    """A token, whether it is trained, whether it is a special one, and the tool part it belongs to ("" outside)."""

    id: int
    text: str
    trained: bool
    special: bool
    part: str


def read_tokens(ids: Sequence[int], mask: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Put text, mask and part to the ids of a conversation."""
    special = special_ids(tokenizer)
    tokens, part = [], ""
    for token_id, text, trained in zip(ids, decode_each(ids, tokenizer), mask, strict=True):
        is_special = token_id in special
        part = OPENINGS.get(text, part) if is_special else part
        tokens.append(Token(int(token_id), text, bool(trained), is_special, part))
        if is_special and text in CLOSINGS:
            part = ""
    return tokens


def fold_images(tokens: Iterable[tuple[int, Token]]) -> list[tuple[int, Token]]:
    """Leave one of the placeholders of an image, with their number.

    >>> image = Token(7, "<|image|>", False, True, "image")
    >>> [(place, token.text) for place, token in fold_images(enumerate([image, image, Token(1, "hi", False, False, "")]))]
    [(0, '<|image|>x2'), (2, 'hi')]
    """
    folded = []
    for is_image, run in groupby(tokens, key=lambda numbered: numbered[1].special and numbered[1].text == IMAGE_TOKEN):
        run = list(run)
        folded += [(run[0][0], run[0][1]._replace(text=f"{IMAGE_TOKEN}x{len(run)}"))] if is_image else run
    return folded


def name_images(row: dict) -> str:
    """Name the images of a rendered conversation, to go behind its own name.

    >>> name_images({"images": ["/pets/cat.png", "data:image/png;base64,iVBORw0KGgo="]}), name_images({})
    (', images: cat.png, a data URL', '')
    """
    names = ["a data URL" if url.startswith("data:") else Path(url).name for url in row.get("images", [])]
    return f", images: {', '.join(names)}" if names else ""


def decode_each(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Decode token by token; of a character that several tokens make up, the last one has it and the others have `PIECE`."""
    waiting: list[int] = []
    for token_id in map(int, ids):
        text = tokenizer.decode([*waiting, token_id])
        if text.endswith(UNFINISHED) and len(waiting) < 3:  # a character has four bytes at most
            waiting.append(token_id)
            yield PIECE
        else:
            waiting = []
            yield text


def split_messages(tokens: Sequence[Token]) -> list[list[Token]]:
    """Cut before each message; a format without nanochat's markers stays in one piece.

    >>> start, word = Token(1, "<|user_start|>", False, True, ""), Token(2, "hi", False, False, "")
    >>> [len(message) for message in split_messages([word, start, word, word, start, word])]
    [1, 3, 2]
    """
    messages = [[]]
    for token in tokens:
        if token.special and token.text in MESSAGE_STARTS:
            messages.append([])
        messages[-1].append(token)
    return [message for message in messages if message]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of the tokens that stand for no text."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
