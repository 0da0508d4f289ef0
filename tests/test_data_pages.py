"""The pages on data of one's own: the files they show are those of the examples, and their commands print what they say."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import running_hub
from tests.test_hub import hub_environment

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS.parent / "recipes" / "examples"
PAGES = {"data.md": "file", "data_file.md": "file", "data_hub.md": "hub", "data_task.md": "task", "images.md": "images"}
BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """List (language, file name, text) of a page's code blocks."""
    return BLOCK.findall((DOCS / page).read_text())


def commands(page: str) -> list[tuple[str, list[str]]]:
    """List the commands of a page and the lines that each is said to print; `...` is whatever comes."""
    runs = [run for language, _, text in blocks(page) if language == "console" for run in text.split("$ ")[1:]]
    return [(lines[0], lines[1:]) for lines in (run.splitlines() for run in runs)]


def says(shown: list[str], printed: str) -> bool:
    """Tell whether the lines shown are among those printed, in their order; a line may end in `...`."""
    lines = iter(printed.splitlines())
    return all(any(line == want or (want.endswith("...") and line.startswith(want[:-3])) for line in lines) for want in shown)


@pytest.mark.parametrize(("shown", "is_said"), [(["a", "..."], True), (["b", "a"], False), (["a", "c..."], True), (["a", "x..."], False)])
def test_lines_are_found_in_their_order(shown, is_said):
    assert says(shown, "a\nb\ncd\n") is is_said


@pytest.mark.parametrize(("page", "folder"), PAGES.items())
def test_a_page_shows_the_files_of_its_example(page, folder):
    shown = {name: text for _, name, text in blocks(page) if name}
    assert len(shown) == {"data.md": 0, "data_hub.md": 3, "images.md": 3}.get(page, 2)
    for name, text in shown.items():
        assert text == (EXAMPLES / folder / name).read_text(), name


@pytest.mark.slow
@pytest.mark.parametrize(("page", "folder"), PAGES.items())
def test_a_page_runs_as_it_says(page, folder, tmp_path):
    example = tmp_path / "examples" / folder
    shutil.copytree(EXAMPLES / folder, example)
    (tmp_path / "quickstart").symlink_to(EXAMPLES.parent / "quickstart")
    programs = {"python": [sys.executable], "hf": [str(Path(sys.executable).with_name("hf"))]}
    assert commands(page)
    with running_hub() as hub:
        environment = hub_environment(hub.endpoint, tmp_path) | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_DATASETS_OFFLINE": "0"}
        for command, shown in commands(page):
            program, *arguments = shlex.split(command)
            options = {"cwd": example, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            run = subprocess.run([*programs[program], *arguments], **options, timeout=300)
            assert run.returncode == (2 if shown[0].startswith("error: ") else 0), run.stdout
            assert says(shown, run.stdout), run.stdout
