"""Pictures of runs, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chatsft.curves import finite
from chatsft.run_report.run import Points, Run

SIZE, DPI = (6.4, 3.8), 150
COLORS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bc4c00", "#57606a", "#0a7e8c", "#bf3989")
STYLES = ("-", "--", ":", "-.")
MARKED = 30
"""Curves of fewer points have a dot on each."""


class Curve(NamedTuple):
    """A line in a picture; of several runs each has a color and each key a style, of one run each key has a color."""

    label: str
    points: Points
    color: str
    style: str


def draw_figures(runs: Sequence[Run]) -> dict[str, bytes]:
    """Draw every figure that the runs have data for.

    Returns:
        PNGs by name.
    """
    figures = {
        "loss": draw("Loss", "loss", curves_of(runs, {"training": "loss", "validation": "eval_loss"})),
        "learning_rates": draw("Learning rates", "rate", curves_of(runs, rates(runs)), log=True),
        "supervised_tokens": draw("Supervised tokens per step", "tokens with a loss", supervised(runs), ranges=ranges(runs), zero=True),
        "gradient_norms": draw("Gradient norms", "norm", curves_of(runs, by_prefix(runs, "grad_norm_")), log=True),
        "throughput": draw("Throughput", "tokens per second", curves_of(runs, {"": "tokens_per_second"}), zero=True),
        "mfu": draw("Model FLOP utilisation", "mfu", curves_of(runs, {"": "mfu"}), zero=True),
        "memory": draw("Memory", "GiB", curves_of(runs, {"": "memory_gib"}), zero=True),
        "skipped_steps": draw("Skipped steps", "steps left out so far", curves_of(runs, {"": "skipped_steps"}), zero=True),
        "task_scores": draw("Task scores during training", "accuracy", curves_of(runs, scores(runs))),
    }
    return {name: picture for name, picture in figures.items() if picture is not None}


def rates(runs: Sequence[Run]) -> dict[str, str]:
    return {label: key for label, key in by_prefix(runs, "lr_").items() if label != "multiplier"}


def scores(runs: Sequence[Run]) -> dict[str, str]:
    keys = [key for run in runs for key in (*run.keys(end="_acc"), *run.keys(start="chatcore"))]
    return {key.removesuffix("_acc"): key for key in keys}


def by_prefix(runs: Sequence[Run], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): key for run in runs for key in run.keys(start=prefix)}


def curves_of(runs: Sequence[Run], keys: Mapping[str, str]) -> list[Curve]:
    """Collect the curves of keys of the log, by label."""
    curves = []
    for number, run in enumerate(runs):
        for place, (label, key) in enumerate(keys.items()):
            is_alone = len(runs) == 1
            color, style = (place, 0) if is_alone else (number, place)
            name = label if is_alone else f"{run.name} {label}".strip()
            curves.append(Curve(name, run.points(key), COLORS[color % len(COLORS)], STYLES[style % len(STYLES)]))
    return curves


def supervised(runs: Sequence[Run]) -> list[Curve]:
    return [curve._replace(points=per_step(curve.points)) for curve in curves_of(runs, {"": "supervised_tokens"})]


def ranges(runs: Sequence[Run]) -> list[tuple[Points, Points]]:
    """Return the fewest and the most supervised tokens that a step had between logs, where they were logged."""
    return [(run.points("supervised_tokens_min"), run.points("supervised_tokens_max")) for run in runs]


def per_step(points: Points) -> Points:
    """Divide sums since the last log by the steps since then.

    >>> per_step([(10, 500), (12, 90)])
    [(10, 50.0), (12, 45.0)]
    """
    steps = [0, *(step for step, _ in points)]
    return [(step, value / max(step - before, 1)) for (step, value), before in zip(points, steps, strict=False)]


def draw(
    title: str,
    y_label: str,
    curves: Sequence[Curve],
    ranges: Sequence[tuple[Points, Points]] = (),
    log: bool = False,
    zero: bool = False,
) -> bytes | None:
    """Draw curves over optimizer steps; None where no curve has a point.

    Args:
        ranges: for the first curves, points below and above between which is shaded.
        log: a logarithmic axis, on which nothing that is 0 shows.
        zero: the axis begins at 0.
    """
    shown = [curve for curve in (curve._replace(points=finite(curve.points, log)) for curve in curves) if curve.points]
    if not shown:
        return None
    figure, axes = make_axes(title, y_label)
    for curve in shown:
        marker = "o" if len(curve.points) < MARKED else None
        axes.plot(*zip(*curve.points, strict=True), curve.style, label=curve.label, color=curve.color, marker=marker, markersize=3.5)
    for curve, (lows, highs) in zip(curves, ranges, strict=False):
        axes.fill_between(*zip(*lows, strict=True), [high for _, high in highs], color=curve.color, alpha=0.2) if lows else None
    if log:
        axes.set_yscale("log")
    elif zero:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1] or 1)
    if len(shown) > 1:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return save(figure)


def make_axes(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
