"""The results of an evaluation, as tables for people and as JSON."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState

from chatsft.evaluation.comparison import Difference
from chatsft.evaluation.conversation_loss import ConversationReport
from chatsft.evaluation.metrics import load_metric
from chatsft.evaluation.task_evaluation import EvaluationOptions, TaskReport


@dataclass
class Results:
    """What an evaluation has found so far.

    Args:
        run: how the numbers came about: checkpoint, options, number of processes.
    """

    run: dict
    reports: list[TaskReport] = field(default_factory=list)
    conversations: ConversationReport | None = None
    differences: list[Difference] = field(default_factory=list)


def describe_run(checkpoint: str, options: EvaluationOptions) -> dict:
    """Say how the numbers come about."""
    return {"checkpoint": checkpoint, "options": asdict(options), "num_processes": PartialState().num_processes}


def format_results(results: Results) -> str:
    """Lay out all there is, table under table."""
    parts = [results.conversations and format_conversations(results.conversations)]
    parts += [format_reports(results.reports)] if results.reports else []
    parts += [format_differences(results.differences)] if results.differences else []
    return "\n\n".join(part for part in parts if part)


def format_reports(reports: list[TaskReport]) -> str:
    """Lay out the reports, one line each, and below them the ChatCORE means that they complete."""
    lines = [f"{'task':<22}{'accuracy':>9}{'95 % interval':>18}{'n':>7}"]
    for report in reports:
        line = f"{report.task:<22}{report.accuracy:>9.4f}{_interval(report.interval):>18}{report.num_problems:>7}"
        if len(report.pass_at) > 1:
            line += "".join(f"  pass@{k} {share:.4f}" for k, share in report.pass_at.items())
        if report.num_truncated:
            line += f"  ({report.num_truncated} prompts lost their beginning: longer than the context)"
        lines.append(line)
    lines += [f"{name:<22}{value:>9.4f}" for name, value in chatcore_of(reports).items()]
    return "\n".join(lines)


def format_differences(differences: list[Difference]) -> str:
    """Lay out what has changed against the baseline; better and worse count the problems solved only now or only then."""
    lines = [f"{'against the baseline':<22}{'change':>9}{'95 % interval':>18}{'n':>7}{'better':>8}{'worse':>7}{'p':>9}"]
    for row in differences:
        low, high = row.interval
        change = f"{row.task:<22}{row.difference:>+9.4f}{f'{low:+.4f} {high:+.4f}':>18}{row.num_problems:>7}"
        lines.append(f"{change}{row.num_better:>8}{row.num_worse:>7}{row.p_value:>9.2g}")
    return "\n".join(lines)


def format_conversations(report: ConversationReport) -> str:
    """Lay out the loss on conversations, over all and by turn."""
    bits = ", ".join(f"{value:.4f} ({year})" for year, value in report.bits_per_byte.items())
    cut = f" ({report.num_truncated} lost their end: longer than the context)" if report.num_truncated else ""
    lines = [
        f"{report.num_conversations} conversations{cut}, {report.num_tokens:,} tokens: loss {report.token_loss:.6f}, bits per byte {bits}",
        f"{'assistant turn':<22}{'loss':>9}{'without history':>18}{'tokens':>10}",
    ]
    lines += [f"{turn.turn:<22}{turn.loss:>9.4f}{turn.loss_without_history:>18.4f}{turn.num_tokens:>10}" for turn in report.turns]
    return "\n".join(lines)


def chatcore_of(reports: list[TaskReport]) -> dict[str, float]:
    """Return the ChatCORE means whose tasks are all there."""
    return load_metric("chatcore").compute(
        predictions=[report.accuracy for report in reports], references=[report.task for report in reports]
    )


def save_results(path: Path, results: Results) -> None:
    """Write what was run, the numbers, and every problem; the file is there in full or as it was before."""
    written = results.run | {"chatcore": chatcore_of(results.reports)}
    if results.conversations is not None:
        written["conversations"] = asdict(results.conversations)
    if results.differences:
        written["differences"] = {row.task: asdict(row) for row in results.differences}
    written["tasks"] = {report.task: asdict(report) for report in results.reports}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f}-{bounds[1]:.4f}"
