"""A conversation as the tokens a model reads, drawn: green where it is trained, red elsewhere."""

from collections.abc import Iterator, Sequence
from html import escape

from transformers import PreTrainedTokenizerBase

from chatsft.inspection.tokens import MESSAGE_STARTS, fold_images, read_tokens
from chatsft.pages.picture import Picture

WIDTH, MARGIN, GAP, HEIGHT, LINE, CHARACTER = 900, 6, 4, 28, 38, 7.8  # pixels; the font is 13 pixels high
COLORS = {  # by (trained, special token): fill, border, text
    (True, False): ("#aceebb", "#1a7f37", "#04260f"),
    (True, True): ("#1a7f37", "#044f1e", "#ffffff"),
    (False, False): ("#ffcecb", "#ffcecb", "#4c0b11"),
    (False, True): ("#a40e26", "#a40e26", "#ffffff"),
}
LEGEND = (
    ("trained", True, False),
    ("trained, special token", True, True),
    ("not trained", False, False),
    ("not trained, special token", False, True),
)
SIGNS = str.maketrans({" ": "·", "\n": "↵", "\t": "→"})
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def draw_tokens(ids: Sequence[int], mask: Sequence[int], tokenizer: PreTrainedTokenizerBase, legend: bool = False) -> Picture:
    """Draw a rendered conversation, each message from a line of its own; spaces and line ends are shown as signs.

    Args:
        mask: 1 = trained.
        legend: say below what the colors mean.
    """
    read = fold_images(enumerate(read_tokens(ids, mask, tokenizer)))
    tokens = [(token.text.translate(SIGNS), token.trained, token.special) for _, token in read]
    boxes, bottom = [], MARGIN
    for token, x, y in place(tokens):
        boxes.append(draw_box(*token, x, y))
        bottom = y
    x, bottom = MARGIN, bottom + LINE + 22 * legend
    for entry in LEGEND if legend else ():
        boxes.append(draw_box(*entry, x, bottom))
        x += box_width(entry[0]) + 3 * GAP
    height = bottom + (HEIGHT + MARGIN) * legend
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
    title = "<title>A conversation as tokens; the trained ones are green, the others red</title>"
    return Picture("\n".join([f'{head}font-family="{FONT}" font-size="13">', title, *boxes, "</svg>", ""]))


def place(tokens: Sequence[tuple[str, bool, bool]]) -> Iterator[tuple[tuple[str, bool, bool], float, int]]:
    """Lay tokens out in lines, a new one where a line is full and where a message begins that is not the first."""
    x, y = MARGIN, MARGIN
    for index, token in enumerate(tokens):
        text, _, special = token
        begins = special and text in MESSAGE_STARTS and index > 1
        if x > MARGIN and (begins or x + box_width(text) > WIDTH - MARGIN):
            x, y = MARGIN, y + LINE
        yield token, x, y
        x += box_width(text) + GAP


def draw_box(text: str, trained: bool, special: bool, x: float, y: float) -> str:
    """Draw one token; `textLength` keeps the text inside its box whatever font is there."""
    fill, border, color = COLORS[trained, special]
    length = len(text) * CHARACTER
    box = f'<rect x="{x:.1f}" y="{y}" width="{box_width(text):.1f}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{border}"/>'
    return f'{box}<text x="{x + 7:.1f}" y="{y + 19}" textLength="{length:.1f}" fill="{color}">{escape(text)}</text>'


def box_width(text: str) -> float:
    return len(text) * CHARACTER + 14
