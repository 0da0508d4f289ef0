"""Conversations, counts and warnings in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chatsft.inspection.statistics import BANDS, Counts

COLUMNS = {  # of the table, and the attribute of Counts
    "conversations": "conversations",
    "turns": "turns",
    "tokens": "tokens",
    "supervised": "share",
    "usual for": "band",
    "truncated": "truncated",
    "never fit": "unreached",
    "empty": "empty",
    "duplicate": "duplicate",
    "longest": "longest",
}
WIDE = 160
"""Columns of an output that is no terminal."""


def make_console() -> Console:
    """Return the console to print tables on: as wide as the terminal, or wide enough for any table where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def print_conversation(console: Console, head: str, tokens: str) -> None:
    """Print a conversation whose tokens are colored by escape codes; the codes stay in an output that is no terminal."""
    if console.is_terminal:
        console.print(Panel(Text.from_ansi(tokens), title=Text(head), title_align="left", border_style="dim"))
    else:
        print(f"{head}\n{tokens}\n", flush=True)


def counts_table(counts: Mapping[str, Counts]) -> Table:
    """Lay out the counts, one line a source and one for all of them."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("source", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "usual for" else "right", overflow="fold")
    for source, count in counts.items():
        table.add_row(source, *cells(count))
    table.add_row("total", *cells(sum(counts.values(), start=Counts())), style="bold")
    return table


def cells(count: Counts) -> list[str]:
    """Write the counts of a source.

    >>> cells(Counts(2, 2, 4000, 3000, 2, truncated=1, longest=2100))
    ['2', '2', '4,000', '75.0 %', 'long answers', '1', '0', '0', '0', '2,100']
    """
    values = (getattr(count, attribute) for attribute in COLUMNS.values())
    return [value or "-" if isinstance(value, str) else percent(value) if isinstance(value, float) else f"{value:,}" for value in values]


def percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f} %"


def describe_bands() -> str:
    """Say which share is usual.

    >>> describe_bands()
    'Usually supervised: long questions 15-40 %, conversational 40-70 %, long answers 70-90 %; choices (one letter or word) less.'
    """
    bands = ", ".join(f"{name} {100 * low:.0f}-{100 * high:.0f} %" for name, (low, high) in BANDS.items())
    return f"Usually supervised: {bands}; choices (one letter or word) less."


def print_statistics(console: Console, counts: Mapping[str, Counts], warnings: Sequence[str]) -> None:
    """Print the table, what is usual, and the warnings."""
    console.print(counts_table(counts))
    console.print(f"\n{describe_bands()}", soft_wrap=True)
    for warning in warnings:
        console.print(Text.assemble(("warning", "yellow"), f": {warning}"), soft_wrap=True)
