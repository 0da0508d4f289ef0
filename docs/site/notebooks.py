"""Execute the notebooks of docs/notebooks in a clean folder and store what they print (`make notebooks`).

    python docs/site/notebooks.py [NOTEBOOK ...]

tests/test_notebooks.py executes them too, and compares.
"""

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "notebooks"
VARIES = "varies"
"""The tag of a cell whose numbers are others on another computer: losses, speeds, answers of a model that was trained there."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "passive",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "TOKENIZERS_PARALLELISM": "false",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SECONDS = 600  # for a cell


def list_notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook in an empty folder that has the recipes where a clone has them, and return it with its outputs.

    Raises:
        CellExecutionError: on the first cell that fails.
    """
    place = folder / "docs" / "notebooks"
    place.mkdir(parents=True)
    (folder / "recipes").symlink_to(REPOSITORY / "recipes")
    code = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    caches = {"HF_DATASETS_CACHE": str(folder / "datasets"), "IPYTHONDIR": str(folder / "ipython")}
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", record_timing=False)
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # it warns of the connection, which stays on this computer
    client.resources = {"metadata": {"path": str(place)}}
    client.execute(env=os.environ | QUIET | caches | {"PYTHONPATH": code})
    for cell in notebook.cells:
        join_streams(cell)
    notebook.metadata = nbformat.from_dict(METADATA)  # without the versions of whoever ran it
    return notebook


def join_streams(cell: NotebookNode) -> None:
    """Join what a stream printed piece by piece, however the pieces fell."""
    joined = []
    for output in cell.get("outputs", ()):
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    if "outputs" in cell:
        cell.outputs = joined


def compare(stored: NotebookNode, executed: NotebookNode) -> list[str]:
    """Name each cell that does not print what is stored, with both; where a cell is tagged `varies`, numbers may differ."""
    differences = []
    for before, after in zip(stored.cells, executed.cells, strict=True):
        varies = VARIES in before.metadata.get("tags", ())
        shown, printed = (read_outputs(cell, varies) for cell in (before, after))
        if shown != printed:
            differences.append(f"{before.id}: stored {shown}, printed {printed}")
    return differences


def read_outputs(cell: NotebookNode, varies: bool = False) -> list[tuple[str, str]]:
    """List what a cell prints and shows as (stream or type, text): streams in one piece each, then the rest in its order.

    Args:
        varies: leave out numbers, and how wide they are.
    """
    streams, shown = {}, []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            streams[output.name] = streams.get(output.name, "") + output.text
        else:
            shown += sorted(output.get("data", {"error": output.get("evalue", "")}).items())
    texts = [*sorted(streams.items()), *shown]
    return [(kind, mask_numbers(text)) for kind, text in texts] if varies else texts


def mask_numbers(text: str) -> str:
    """Put a sign for each number.

    >>> mask_numbers("Step 00009 | Training loss: 4.087296 | tok/s:   1,536")
    'Step # | Training loss: # | tok/s: #'
    """
    return re.sub(r" +", " ", NUMBER.sub("#", text))


def main(arguments: Sequence[str]) -> None:
    for path in map(Path, arguments or list_notebooks()):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main(sys.argv[1:])
