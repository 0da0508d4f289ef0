"""The printed script makes a real bash complete verbs, options, files, tasks and keys."""

import shutil
import subprocess
from pathlib import Path

import pytest

from chatsft.cli import main

ROOT = Path(__file__).parents[1]
ASK = """
source "$1"; shift
COMP_WORDS=(chatsft "$@"); COMP_CWORD=$#
compopt() { [[ "$*" != *nospace* ]] || echo "compopt $*"; }
_chatsft_with_keys
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """Return a file with what the command prints for bash."""
    path = tmp_path_factory.mktemp("completion") / "chatsft.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rep"], ["report"]),
        (["preview", "--h"], ["--help", "--html"]),
        (["train", "recipes/quickstart.y"], ["recipes/quickstart.yaml"]),
        (["train", "recipes/quickstart.yaml", "matrix"], ["compopt -o nospace", "matrix_lr="]),
        (["dpo", "recipes/dpo.yaml", "precompute_ref_l"], ["compopt -o nospace", "precompute_ref_log_probs="]),
        (["convert", "to-n"], ["to-nanochat"]),
        (["convert", "to-hf", "--d"], ["--dtype"]),
        (["eval", "recipes/quickstart", "--tasks", "ARC"], ["ARC-Easy", "ARC-Challenge"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(script, words, expected):
    run = subprocess.run(["bash", "-c", ASK, "ask", str(script), *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_that_names_the_keys(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "matrix_lr=" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
