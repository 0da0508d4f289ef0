"""Draw docs/images/mask.svg: a conversation as the tokens a model reads, green where it is trained.

python docs/images/mask.py
"""

from html import escape
from pathlib import Path

from chatsft.model.loading import load_tokenizer
from chatsft.tasks.arithmetic import Arithmetic

FOLDER = Path(__file__).parent
TOKENIZER = FOLDER.parents[1] / "recipes" / "quickstart"
EXAMPLE = 12  # of the arithmetic task

WIDTH, MARGIN, GAP, HEIGHT, LINE, CHARACTER = 900, 6, 4, 28, 38, 7.8  # pixels; the font is 13 pixels high
COLORS = {  # by (trained, special token): fill, border, text
    (1, False): ("#aceebb", "#1a7f37", "#04260f"),
    (1, True): ("#1a7f37", "#044f1e", "#ffffff"),
    (0, False): ("#ffcecb", "#ffcecb", "#4c0b11"),
    (0, True): ("#a40e26", "#a40e26", "#ffffff"),
}
LEGEND = (("trained", 1, False), ("trained, special token", 1, True), ("not trained", 0, False), ("not trained, special token", 0, True))
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def draw_box(text: str, trained: int, special: bool, x: float, y: float) -> str:
    """Draw one token; `textLength` keeps the text inside its box whatever font is there."""
    fill, border, color = COLORS[trained, special]
    length = len(text) * CHARACTER
    box = f'<rect x="{x:.1f}" y="{y}" width="{box_width(text):.1f}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{border}"/>'
    return f'{box}<text x="{x + 7:.1f}" y="{y + 19}" textLength="{length:.1f}" fill="{color}">{escape(text)}</text>'


def box_width(text: str) -> float:
    return len(text) * CHARACTER + 14


def draw_mask(tokens: list[tuple[str, int, bool]]) -> str:
    """Lay out (text, trained, special) in lines, a new one where a line is full and where the answer begins, above a legend."""
    boxes, x, y = [], MARGIN, MARGIN
    for text, trained, special in tokens:
        if x + box_width(text) > WIDTH - MARGIN or text == "<|assistant_start|>":
            x, y = MARGIN, y + LINE
        boxes.append(draw_box(text, trained, special, x, y))
        x += box_width(text) + GAP
    x, y = MARGIN, y + LINE + 22
    for text, trained, special in LEGEND:
        boxes.append(draw_box(text, trained, special, x, y))
        x += box_width(text) + 3 * GAP
    height = y + HEIGHT + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
    title = "<title>A conversation as tokens; the trained ones are green, the others red</title>"
    return "\n".join([f'{head}font-family="{FONT}" font-size="13">', title, *boxes, "</svg>", ""])


def read_tokens() -> list[tuple[str, int, bool]]:
    """Render the example; spaces and line ends are shown as signs."""
    tokenizer = load_tokenizer(str(TOKENIZER))
    ids, mask = tokenizer.render_conversation(Arithmetic()[EXAMPLE])
    texts = [tokenizer.decode([token]).replace(" ", "·").replace("\n", "↵") for token in ids]
    return [(text, trained, token in tokenizer.all_special_ids) for text, token, trained in zip(texts, ids, mask, strict=True)]


if __name__ == "__main__":
    (FOLDER / "mask.svg").write_text(draw_mask(read_tokens()), encoding="utf-8")
