"""The page of a run, and the page that compares several."""

import base64
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import median

from chatsft.evaluation.comparison import Difference
from chatsft.pages import save_page
from chatsft.run_report.run import Run
from chatsft.run_report.scores import differences, find_pairs, find_samples, own_reports, score_rows

FINALS = {  # what the table of results shows: label, key of the log, which of its values, format
    "training loss": ("loss", itemgetter(-1), "{:.4f}"),
    "validation loss": ("eval_loss", itemgetter(-1), "{:.4f}"),
    "tokens per second": ("tokens_per_second", median, "{:,.0f}"),
    "mfu": ("mfu", median, "{:.1%}"),
    "memory": ("memory_gib", max, "{:.2f} GiB"),
    "skipped steps": ("skipped_steps", itemgetter(-1), "{:,}"),
    "time": ("train_runtime", itemgetter(-1), "{:,.0f} s"),
}
NOT_COMPARED = ("output_dir",)


def save_report(path: Path, runs: Sequence[Run], pictures: Mapping[str, bytes]) -> None:
    """Write the page of one run, or of a comparison with the first of several."""
    is_comparison = len(runs) > 1
    compared = compare_runs(runs) if is_comparison else differences(find_pairs(runs[0]))
    save_page(
        path,
        "report.html",
        title="Runs compared" if is_comparison else f"Run {runs[0].name}",
        runs=runs,
        finals=final_rows(runs),
        pictures={name.replace("_", " "): base64.b64encode(picture).decode() for name, picture in pictures.items()},
        scores=score_rows(runs),
        compared=compared if is_comparison else [("after against before training", row) for row in compared],
        samples=[] if is_comparison else find_samples(runs[0]),
        settings=differing_settings(runs) if is_comparison else [],
        environments=environment_rows(runs),
    )


def final_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """List what each figure came to (the last value; the median of a speed; the most of the memory), one column a run."""
    rows = [("steps", [f"{run.global_step:,} of {run.max_steps:,}" for run in runs])]
    for label, (key, choose, form) in FINALS.items():
        values = [[value for _, value in run.points(key)] for run in runs]
        if any(values):
            rows.append((label, [form.format(choose(column)) if column else "-" for column in values]))
    return rows


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """List the keys of the recipes that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NOT_COMPARED)
    rows = [(key, [str(run.settings[key]) if key in run.settings else "-" for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def compare_runs(runs: Sequence[Run]) -> list[tuple[str, Difference]]:
    """Compare the scores of every run's own model with the first run's, on the problems that both have."""
    first = own_reports(runs[0])
    rows = []
    for run in runs[1:]:
        pairs = [(first[task], report) for task, report in own_reports(run).items() if task in first]
        rows += [(f"{run.name} against {runs[0].name}", row) for row in differences(pairs)]
    return rows


def environment_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Lay the environments side by side, one line a fact."""
    flat = [flatten(run.environment) for run in runs]
    keys = dict.fromkeys(key for facts in flat for key in facts)
    return [(key, [facts.get(key, "-") for facts in flat]) for key in keys]


def flatten(environment: Mapping) -> dict[str, str]:
    """Write nested facts as text.

    >>> flatten({"python": "3.12", "packages": {"torch": "2.13"}, "gpus": [{"name": "H100", "memory_gib": 79.2}], "cuda": None})
    {'python': '3.12', 'torch': '2.13', 'gpus': 'H100 (79.2 GiB)', 'cuda': '-'}
    """
    facts = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            facts |= flatten(value)
        elif isinstance(value, list):
            facts[key.replace("_", " ")] = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in value) or "none"
        else:
            facts[key.replace("_", " ")] = "-" if value is None else str(value)
    return facts
