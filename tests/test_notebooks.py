"""The notebooks print what they store: everything, or in cells tagged `varies` everything but the numbers."""

import importlib
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w.<~/*:-])/(?:[\w.-]+/)+[\w.-]+|[A-Z]:\\\\|file://")


@pytest.fixture
def notebooks(monkeypatch):
    """Import docs/site/notebooks.py, which is in no package."""
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    return importlib.import_module("notebooks")


def read(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def notebook_of(*outputs, tags=()):
    cell = new_code_cell("run()", id="run", outputs=list(outputs), metadata={"tags": list(tags)})
    return new_notebook(cells=[cell])


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def shown(**data):
    return new_output("display_data", data={kind.replace("_", "/"): text for kind, text in data.items()})


def test_the_three_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["custom_task", "masks", "train_evaluate_chat"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_and_shows_something(path):
    _, cells = read(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.id for cell in cells if not cell.outputs] == []
    assert [cell.id for cell in cells for output in cell.outputs if output.output_type == "error"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_hold_no_path_of_a_machine_no_progress_bar_and_no_warning(path, notebooks):
    _, cells = read(path)
    texts = [(cell.id, text) for cell in cells for _, text in notebooks.read_outputs(cell)]
    unwanted = re.compile(rf"{ABSOLUTE.pattern}|%\||it/s|\bWarning\b")
    assert [(cell, found[0]) for cell, text in texts if (found := unwanted.search(text))] == []


@pytest.mark.parametrize(
    ("text", "is_found"), [("/tmp/me/a.json", True), ("D:\\\\a", True), ("runs/a.json", False), ("../../recipes/a", False)]
)
def test_a_path_of_a_machine_is_recognised(text, is_found):
    assert bool(ABSOLUTE.search(f"Wrote {text}")) is is_found
    assert not ABSOLUTE.search("<span>a</span> 1/2 tok/s </pre>")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_files_name_no_versions_and_no_times_so_that_diffs_are_small(path, notebooks):
    notebook, cells = read(path)
    assert notebook.metadata == notebooks.METADATA
    assert [cell.id for cell in cells if set(cell.metadata) - {"tags"}] == []
    assert [cell.id for cell in notebook.cells if re.fullmatch(r"[0-9a-f]{8,}", cell.id)] == []
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_cells_that_print_numbers_may_vary(path, notebooks):
    _, cells = read(path)
    varying = [cell for cell in cells if notebooks.VARIES in cell.metadata.get("tags", ())]
    outputs = {cell.id: str(notebooks.read_outputs(cell)) for cell in varying}
    assert [cell for cell, text in outputs.items() if notebooks.mask_numbers(text) == text] == []
    assert all(set(cell.metadata.get("tags", ())) <= {notebooks.VARIES} for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_to_files(path):
    notebook, _ = read(path)
    links = [link for cell in notebook.cells for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", cell.source)]
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("stored", "printed_now", "is_same"),
    [
        (["loss 1.5\n"], ["loss 1.5\n"], True),
        (["loss 1.5\n"], ["loss 1.6\n"], False),
        (["loss 1.5\n"], [], False),
        (["a\n", "b\n"], ["a\nb\n"], True),
    ],
)
def test_outputs_are_compared_to_the_letter(notebooks, stored, printed_now, is_same):
    before, after = (notebook_of(*map(printed, texts)) for texts in (stored, printed_now))
    assert (notebooks.compare(before, after) == []) is is_same


@pytest.mark.parametrize(
    ("now", "is_same"), [("loss  12.25, 3 of 4\n", True), ("loss nan, 3 of 4\n", False), ("loss 1.5, 3 of\n", False), ("", False)]
)
def test_where_outputs_vary_only_numbers_may(notebooks, now, is_same):
    before, after = (notebook_of(printed(text), tags=["varies"]) for text in ("loss 1.5, 1 of 4\n", now))
    assert (notebooks.compare(before, after) == []) is is_same


def test_pictures_and_streams_are_compared_too_and_a_difference_names_its_cell(notebooks):
    before = notebook_of(printed("a"), shown(text_html="<b>1</b>", text_plain="1"))
    assert notebooks.compare(before, notebook_of(shown(text_html="<b>1</b>", text_plain="1"), printed("a"))) == []
    [difference] = notebooks.compare(before, notebook_of(printed("a"), shown(text_html="<b>2</b>", text_plain="1")))
    assert difference.startswith("run: stored [('stdout', 'a'), ('text/html', '<b>1</b>')")
    assert len(notebooks.compare(before, notebook_of(printed("a", "stderr"), shown(text_html="<b>1</b>", text_plain="1")))) == 1


def test_pieces_of_a_stream_are_stored_as_one(notebooks):
    [cell] = notebook_of(printed("a"), printed("b"), printed("c", "stderr"), printed("d")).cells
    notebooks.join_streams(cell)
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_stores(path, notebooks, tmp_path):
    executed = notebooks.execute(path, tmp_path)
    assert notebooks.compare(nbformat.read(path, as_version=4), executed) == [], "if it should: make notebooks"


@pytest.mark.slow
def test_a_cell_that_fails_is_an_error(notebooks, tmp_path):
    failing = new_notebook(cells=[new_code_cell("1 / 0", id="fails")])
    nbformat.write(failing, tmp_path / "failing.ipynb")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.execute(tmp_path / "failing.ipynb", tmp_path)
