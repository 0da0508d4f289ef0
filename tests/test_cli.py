"""`chatsft VERB ...` is `python -m chatsft.VERB ...`."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chatsft
from chatsft.cli import VERBS, main
from tests.model.oracle import FIXTURES

PACKAGE = Path(chatsft.__file__).parent


def is_program(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)


def test_every_program_is_a_verb():
    assert set(VERBS) == {path.stem for path in PACKAGE.glob("*.py") if is_program(path)} - {"cli"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_has_a_line_for_every_verb_and_examples(arguments, capsys):
    if arguments:
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    else:
        assert main(arguments) == 0
    printed = capsys.readouterr().out
    verbs = printed[printed.index("verbs:\n") + len("verbs:\n") : printed.index("\n\noptions:")]
    assert [line.split(maxsplit=1) for line in verbs.splitlines()] == [list(entry) for entry in VERBS.items()]
    assert "chatsft preview recipes/quickstart.yaml --stats" in printed


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"serve"}))
def test_the_help_of_a_verb_begins_with_its_name_and_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: chatsft {verb} ")
    assert re.search(rf"^ *(accelerate launch -m chatsft\.|chatsft ){verb}\b", printed, re.MULTILINE)


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"chatsft {chatsft.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_hands_its_arguments_to_its_program(verb, monkeypatch):
    received = []
    monkeypatch.setattr(importlib.import_module(f"chatsft.{verb}"), "main", lambda argv: received.append(argv) or 7)
    assert main([verb, "a", "key=value", "--flag"]) == 7
    assert received == [["a", "key=value", "--flag"]]


def test_a_model_is_converted_through_the_command(tmp_path, capsys):
    arguments = ["convert", "to-hf", str(FIXTURES / "model_v1" / "mha"), str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(FIXTURES / "tokenizer" / "v1_512")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_exit_code_of_a_program_is_the_commands(tmp_path):
    run = subprocess.run([sys.executable, "-m", "chatsft.cli", "train", str(tmp_path / "gone.yaml")], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: There is no recipe")


@pytest.mark.parametrize(
    ("verb", "nearest"), [("trian", "train"), ("Chat", "chat"), ("evaluate", "eval"), ("evla", "eval"), ("prevew", "preview")]
)
def test_an_unknown_verb_names_the_nearest(verb, nearest, capsys):
    assert main([verb]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: there is no verb {verb!r}. Did you mean {nearest}? chatsft --help lists all.\n"


def test_a_verb_like_no_other_only_points_to_the_help(capsys):
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err == "error: there is no verb 'xyzzy'. chatsft --help lists all.\n"


def test_no_program_is_imported_before_it_is_needed():
    check = "import sys, chatsft.cli; chatsft.cli.main([]); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "chatsft.cli" in loaded
    assert not loaded & {f"chatsft.{verb}" for verb in VERBS}
