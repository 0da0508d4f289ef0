"""Penalties on repetition and on length, as `model.generate()` knows them."""

import argparse


def add_penalties(parser: argparse.ArgumentParser) -> None:
    """Give a program the flags of `penalty_options`."""
    parser.add_argument(
        "--repetition_penalty", type=float, default=1.0, help="above 1 makes tokens that were there less likely (default: %(default)s)"
    )
    parser.add_argument(
        "--exponential_decay_length_penalty",
        type=float,
        nargs=2,
        metavar=("START", "FACTOR"),
        help="after START new tokens, make the end of the answer likelier by FACTOR with each token, as 64 1.05",
    )


def check_penalties(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End a program with its usage where the flags cannot be meant."""
    try:
        penalty_options(arguments.repetition_penalty, arguments.exponential_decay_length_penalty)
    except ValueError as error:
        parser.error(str(error))


def penalty_options(repetition_penalty: float, exponential_decay_length_penalty: tuple[int, float] | None) -> dict:
    """Return the options of generate() for the penalties that change anything."""
    if repetition_penalty <= 0:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; it may be 1 (none) or more, as 1.2, or a positive number below 1.")
    options = {} if repetition_penalty == 1 else {"repetition_penalty": repetition_penalty}
    if exponential_decay_length_penalty is None:
        return options
    start, factor = exponential_decay_length_penalty
    if start < 0 or factor < 1:
        raise ValueError(f"exponential_decay_length_penalty is {start} {factor}; it needs a start of 0 or more and a factor of 1 or more.")
    return options | {"exponential_decay_length_penalty": (int(start), float(factor))}
