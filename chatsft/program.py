"""What programs have in common: the command line of a recipe, and one line for an error."""

import argparse
import sys
from collections.abc import Callable, Sequence

from safetensors import SafetensorError

from chatsft.faults import TrainingFault
from chatsft.recipe import ARGUMENTS, Recipe, load_recipe


def recipe_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a program that takes a recipe; what it does not know are overrides."""
    parser = argparse.ArgumentParser(
        prog=f"chatsft {verb}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file; any key can follow as key=value or --key value")
    return parser


def run_recipe(
    work: Callable[[Recipe], object],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    arguments: tuple[type, type, type] = ARGUMENTS,
) -> int:
    """Load the recipe of a command line and work on it; return the exit code."""
    options, overrides = parser.parse_known_args(argv)
    return exit_code(lambda: work(load_recipe(options.recipe, overrides, arguments)))


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a program: 0 where it was done, 2 and one line on stderr on bad input, 1 and a line where faults ended a run."""
    try:
        work()
    except (ValueError, OSError, NotImplementedError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingFault as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
