"""The pictures of the documentation show what the code does today."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_of_the_mask_is_what_its_program_draws():
    program = runpy.run_path(str(IMAGES / "mask.py"))
    tokens = program["read_tokens"]()
    drawn = program["draw_mask"](tokens)
    assert drawn == (IMAGES / "mask.svg").read_text(encoding="utf-8"), "run python docs/images/mask.py"
    picture = ElementTree.fromstring(drawn)
    assert {element.tag.removeprefix(SVG) for element in picture.iter()} == {"svg", "title", "rect", "text"}
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert texts == [text for text, _, _ in [*tokens, *program["LEGEND"]]]
    assert [trained for text, trained, _ in tokens if text in ("<|output_start|>", "<|python_end|>", "<|assistant_end|>")] == [1, 0, 1]
    right_edges = [float(box.get("x")) + float(box.get("width")) for box in picture.iter(f"{SVG}rect")]
    assert max(right_edges) < float(picture.get("width"))
