"""The report is one page that fetches nothing, and its pictures."""

import base64
import re

import pytest

from chatsft import report
from chatsft.report import main
from tests.run_report.run_folders import LOGS, RECIPE, write_run, write_scores


def words(page: str) -> str:
    """Return the text of a page, its pictures left out."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())


def test_a_run_gets_a_page_with_its_pictures_scores_samples_recipe_and_environment(tmp_path, capsys):
    folder = write_run(tmp_path / "a")
    write_scores(folder / "before.json", "base", [False, False])
    write_scores(folder / "after.json", str(folder), [True, False])
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "                       a",
        "steps             4 of 4",
        "training loss     1.5000",
        "validation loss   2.0000",
        "tokens per second  1,000",
        "time                12 s",
        f"Wrote {folder}/report.html and its pictures in {folder}/report",
    ]
    page = (folder / "report.html").read_text()
    pictures = {base64.b64decode(picture) for picture in re.findall(r'src="data:image/png;base64,([^"]+)"', page)}
    assert pictures == {path.read_bytes() for path in (folder / "report").glob("*.png")}
    assert len(pictures) == 4
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    text = words(page)
    for part in (
        "Arithmetic before training before.json 0.0000 0.0000-0.6576 2",
        "Arithmetic trained after.json 0.5000 0.0945-0.9055 2",
        "Arithmetic after against before training +0.5000",
        "Arithmetic, problem 0 expected: 1 &lt;b&gt;0 + 1? before training: wrong it is 0 after: right it is 0",
        "matrix_lr: 0.02",
        "python 3.12.1 torch 2.13.0 gpus none",
    ):
        assert part in text


def test_runs_are_compared_with_the_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = write_run(tmp_path / "a")
    second = write_run(
        tmp_path / "b", [LOGS[0], LOGS[1] | {"mfu": 0.25}], RECIPE.replace("0.02", "0.1").replace("runs/a", "runs/b"), step=2
    )
    write_scores(first / "scores.json", str(first), [True, True, False])
    write_scores(second / "scores.json", str(second), [False, True, False])
    assert main(["a", "b", "--output", "pages/cmp.html"]) == 0
    assert "training loss     1.5000  2.0000" in capsys.readouterr().out
    text = words((tmp_path / "pages" / "cmp.html").read_text())
    assert "b stopped after 2 of 4 steps" in text
    assert "key a b matrix_lr 0.02 0.1 Curves" in text
    assert "mfu - 25.0%" in text
    assert "Arithmetic b against a -0.3333" in text
    assert (tmp_path / "pages" / "cmp" / "loss.png").is_file()


def test_evaluations_of_other_problems_are_not_compared(tmp_path):
    folder = write_run(tmp_path / "a")
    write_scores(folder / "after.json", str(folder), [True])
    write_scores(folder / "before.json", "base", [False])
    path = folder / "before.json"
    path.write_text(path.read_text().replace("0 + 1?", "7 + 7?"))
    assert main([str(folder)]) == 0
    assert "Problem by problem" not in (folder / "report.html").read_text()


def test_a_run_without_evaluations_says_how_to_make_one(tmp_path):
    assert main([str(write_run(tmp_path / "a"))]) == 0
    assert "No evaluation lies in the folder." in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize("folder", ["gone", "."])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    assert main([folder]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "Name the output_dir of a run" in line
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_no_html_file_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main([str(write_run(tmp_path / "a")), "--output", str(tmp_path / "page")]) == 2
    assert "Give it a name that ends in .html" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    assert main([str(write_run(tmp_path / "a"))]) == 2
    assert "pip install 'chatsft[report]'" in capsys.readouterr().err
