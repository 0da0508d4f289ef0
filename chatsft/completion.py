"""Print what makes a shell complete verbs, options, files and the keys of recipes.

chatsft completion bash > ~/.local/share/bash-completion/completions/chatsft
chatsft completion zsh > ~/.zfunc/_chatsft        # a folder in fpath, before compinit
chatsft completion tcsh > ~/.chatsft.tcsh         # and source it in ~/.tcshrc
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence

import shtab

from chatsft.cli import VERBS
from chatsft.recipe import ARGUMENTS, recipe_keys
from chatsft.tasks.registry import TASKS

FOLDERS = ("checkpoint", "model", "out", "data_root", "tokenizer", "tokenizer_path", "base", "runs")
FILES = ("recipe", "html", "output", "baseline", "conversations")
"""Arguments that take a path, by name."""


# A completed key is not a finished word: its value follows without a space.
BASH_KEYS = """
_chatsft_with_keys() {
  _shtab_chatsft "$@"
  if [[ ${COMPREPLY[0]-} == *= ]]; then compopt -o nospace; fi
}
complete -o bashdefault -F _chatsft_with_keys chatsft"""


def main(argv: Sequence[str] | None = None) -> int:
    shell = make_parser().parse_args(argv).shell
    print(shtab.complete(describe_command(), shell) + (BASH_KEYS if shell == "bash" else ""))
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chatsft completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def describe_command() -> argparse.ArgumentParser:
    """Put the parsers of all programs under their verbs; for completion alone, as each program reads its own arguments."""
    command = argparse.ArgumentParser(prog="chatsft")
    verbs = command.add_subparsers(dest="verb")
    for verb, purpose in VERBS.items():
        program = importlib.import_module(f"chatsft.{verb}")
        parser = verbs.add_parser(verb, parents=[program.make_parser()], add_help=False, help=purpose)
        tell_what_fits(parser, recipe_keys(vars(program).get("ARGUMENTS", ARGUMENTS)))
    return command


def tell_what_fits(parser: argparse.ArgumentParser, keys: Iterable[str]) -> None:
    """Mark the arguments of a program that take files, folders or tasks, and add the keys that may follow a recipe."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                tell_what_fits(command, keys)
        elif action.dest in FOLDERS or action.dest in FILES:
            action.complete = shtab.DIRECTORY if action.dest in FOLDERS else shtab.FILE
        elif action.dest == "tasks":
            action.choices = list(TASKS)
    if any(action.dest == "recipe" for action in parser._actions):
        parser.add_argument("overrides", nargs="*", choices=[f"{key}=" for key in keys])


if __name__ == "__main__":
    sys.exit(main())
