"""The pictures of the documentation show what the code does today."""

import runpy
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def test_the_picture_of_the_mask_is_what_its_program_draws():
    drawn = runpy.run_path(str(IMAGES / "mask.py"))["draw_mask"]()
    assert drawn == (IMAGES / "mask.svg").read_text(encoding="utf-8"), "run python docs/images/mask.py"
