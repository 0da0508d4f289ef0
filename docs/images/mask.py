"""Draw docs/images/mask.svg: a conversation as the tokens a model reads, green where it is trained.

python docs/images/mask.py
"""

from pathlib import Path

from chatsft.inspection.token_picture import draw_tokens
from chatsft.model.loading import load_tokenizer
from chatsft.tasks.arithmetic import Arithmetic

FOLDER = Path(__file__).parent
TOKENIZER = FOLDER.parents[1] / "recipes" / "quickstart"
EXAMPLE = 12  # of the arithmetic task


def draw_mask() -> str:
    tokenizer = load_tokenizer(str(TOKENIZER))
    return draw_tokens(*tokenizer.render_conversation(Arithmetic()[EXAMPLE]), tokenizer, legend=True)


if __name__ == "__main__":
    (FOLDER / "mask.svg").write_text(draw_mask(), encoding="utf-8")
