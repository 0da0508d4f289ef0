"""A run as it goes, in the terminal: progress, figures and the course of the loss."""

import atexit
import logging
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatsft.callbacks import ConsoleCallback, log_line

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 60
FIGURES = {  # key of the log: label, format
    "loss": ("training loss", "{:.4f}"),
    "eval_loss": ("validation loss", "{:.4f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "mfu": ("mfu", "{:.1%}"),
    "supervised_tokens": ("trained tokens", "{:,}"),
    "memory_gib": ("memory", "{:.2f} GiB"),
    "skipped_steps": ("skipped steps", "{:,}"),
    "lr_multiplier": ("lr multiplier", "{:.4f}"),
}
PER_ROW = 3


class LiveView(TrainerCallback):
    """Show the last figures of a run in place of a line for every log; evaluations are printed as lines that stay."""

    def __init__(self, console: Console):
        self.console, self.live = console, None
        self.figures: dict[str, float] = {}
        self.losses: list[float] = []

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        self.progress = make_progress(self.console)
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4)
        self.live.start()
        self.handlers = redirect_logging()
        atexit.register(self.close)  # whatever ends the run, the terminal gets its cursor back

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.live is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs) -> None:
        if self.live is None:
            return
        self.figures |= {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        if "lr_multiplier" in logs and "loss" in logs:
            self.losses.append(logs["loss"])
        elif line := log_line(state.global_step, logs):
            self.live.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_train_end(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last picture where it is and give the terminal back."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            for handler, stream in self.handlers:
                handler.setStream(stream)

    def render(self) -> RenderableType:
        return Panel(Group(self.progress, figures_table(self.figures), loss_line(self.losses)), border_style="dim")


def choose_console(args: TrainingArguments) -> TrainerCallback:
    """Return the live view in a terminal, and otherwise, or with disable_tqdm, nanochat's line for every log."""
    console = Console()
    return LiveView(console) if console.is_terminal and not args.disable_tqdm else ConsoleCallback()


def redirect_logging() -> list[tuple[logging.StreamHandler, TextIO]]:
    """Send warnings above the picture instead of through it: handlers keep the stderr that was there before. Return the old streams."""
    handlers = [*logging.getLogger().handlers, *logging.getLogger("transformers").handlers]
    plain = [handler for handler in handlers if type(handler) is logging.StreamHandler]
    return [(handler, handler.setStream(sys.stderr) or handler.stream) for handler in plain]


def make_progress(console: Console) -> Progress:
    left = (TextColumn("left"), TimeRemainingColumn())
    return Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(40), TimeElapsedColumn(), *left, console=console)


def figures_table(figures: dict[str, float]) -> Table:
    """Lay out the last figures, three to a line, and the rate of each parameter group in lines of their own."""
    shown = [(label, form.format(figures[key])) for key, (label, form) in FIGURES.items() if key in figures]
    shown += [(f"{key.removeprefix('eval_')}", f"{value:.4f}") for key, value in figures.items() if key.endswith("_acc")]
    shown += [("lr " + key.removeprefix("lr_"), f"{value:.2e}") for key, value in figures.items() if is_rate(key)]
    table = Table.grid(padding=(0, 2))
    for first in range(0, len(shown), PER_ROW):
        table.add_row(*(cell for label, value in shown[first : first + PER_ROW] for cell in (Text(label, style="dim"), Text(value))))
    return table


def is_rate(key: str) -> bool:
    """Tell whether a key of the log is the rate of a parameter group.

    >>> is_rate("lr_matrices"), is_rate("lr_multiplier")
    (True, False)
    """
    return key.startswith("lr_") and key != "lr_multiplier"


def loss_line(losses: Sequence[float]) -> Text:
    """Draw the course of the loss in one line, each block the mean of a stretch of logs."""
    return Text.assemble(("loss ", "dim"), (sparkline(losses, SPARKLINE_WIDTH), "cyan")) if len(losses) > 1 else Text()


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as blocks between their least and their largest; what is no number is left out.

    >>> sparkline([3.0, 2.0, 1.5, 1.0], 10)
    '█▄▂▁'
    """
    values = [value for value in values if value == value and abs(value) != float("inf")]
    width = min(width, len(values))
    bounds = [index * len(values) // width for index in range(width + 1)] if width else []
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(bounds)]
    if not means:
        return ""
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[int((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)
