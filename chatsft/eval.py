"""Evaluate a model on chat tasks.

python -m chatsft.eval CHECKPOINT --tasks ARC-Easy GSM8K
accelerate launch -m chatsft.eval CHECKPOINT --output results.json
"""

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from chatsft.evaluation import EvaluationOptions, TaskReport, chatcore, evaluate_task
from chatsft.evaluation.statistics import BASELINES
from chatsft.model.loading import load_chat_model
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.model_card import CARD_FILE, add_results
from chatsft.tasks import Task, create_task
from chatsft.tasks.registry import find_task, list_options

DEFAULTS = EvaluationOptions()
SPELLINGBEE_SIZE = 256


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chatsft.eval", description="Evaluate a model on chat tasks.")
    parser.add_argument("checkpoint", help="folder written by save_pretrained, Hub id, or nanochat checkpoint folder")
    parser.add_argument("--tokenizer_path", help="another tokenizer; for a nanochat checkpoint the folder of tokenizer.pkl")
    parser.add_argument("--tasks", nargs="+", default=list(BASELINES), help=f"task names, also 'A|B|C' (default: {' '.join(BASELINES)})")
    parser.add_argument("--data_root", help="folder with the tasks' data as files; without it they come from the Hub")
    parser.add_argument("--max_problems", type=_positive, help="only the first problems of each task")
    parser.add_argument("--batch_size", type=_positive, default=DEFAULTS.batch_size, help="problems at a time (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top_k", type=int, default=DEFAULTS.top_k, help="sample among the most likely, 0 is all (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=_positive, default=DEFAULTS.max_new_tokens, help="longest answer (default: %(default)s)")
    parser.add_argument("--num_samples", type=_positive, default=DEFAULTS.num_samples, help="answers per problem (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the results, with every prompt, answer and verdict, to this JSON file")
    parser.add_argument("--update_card", action="store_true", help="put the accuracies into the model card in CHECKPOINT")
    arguments = parser.parse_args(argv)
    if arguments.temperature < 0 or arguments.top_k < 0:
        parser.error("--temperature and --top_k may be 0 or more")
    if arguments.update_card and not (Path(arguments.checkpoint) / CARD_FILE).is_file():
        parser.error(f"--update_card: {arguments.checkpoint} holds no model card ({CARD_FILE})")
    return arguments


def create_tasks(names: list[str], data_root: str | None) -> dict[str, Task]:
    """Make the test split of every named task, before any model is loaded.

    Raises:
        ValueError: on an unknown name, with the nearest known one, and on a task that only trains.
    """
    tasks = {}
    for name in dict.fromkeys(name.strip() for group in names for name in group.split("|")):
        task_class, _ = find_task(name)
        if task_class.eval_type is Task.eval_type:
            raise ValueError(f"task {name} can be trained on but not evaluated. Tasks to evaluate: {', '.join(BASELINES)}.")
        options = {"split": "test"} if "split" in list_options(task_class) else {}
        if name == "SpellingBee":
            options["size"] = SPELLINGBEE_SIZE
        tasks[name] = create_task(name, data_root=data_root, **options)
    return tasks


def load_model(arguments: argparse.Namespace) -> tuple[PreTrainedModel, GPTTokenizer]:
    """Load model and tokenizer onto this rank's device, in bfloat16 on CUDA as nanochat evaluates."""
    device = PartialState(cpu=not torch.accelerator.is_available()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_chat_model(arguments.checkpoint, arguments.tokenizer_path, device=device, dtype=dtype)


def format_table(reports: list[TaskReport]) -> str:
    """Lay out the reports, one line each, and below them the ChatCORE means that they complete."""
    lines = [f"{'task':<22}{'accuracy':>9}{'95 % interval':>18}{'n':>7}"]
    for report in reports:
        low, high = report.interval
        line = f"{report.task:<22}{report.accuracy:>9.4f}{f'{low:.4f}-{high:.4f}':>18}{report.num_problems:>7}"
        if len(report.pass_at) > 1:
            line += "".join(f"  pass@{k} {share:.4f}" for k, share in report.pass_at.items())
        if report.num_truncated:
            line += f"  ({report.num_truncated} prompts lost their beginning: longer than the context)"
        lines.append(line)
    lines += [f"{name:<22}{value:>9.4f}" for name, value in _chatcore(reports).items()]
    return "\n".join(lines)


def save_results(path: Path, arguments: argparse.Namespace, reports: list[TaskReport]) -> None:
    """Write what was run, the numbers, and every problem."""
    results = {
        "checkpoint": arguments.checkpoint,
        "options": asdict(_options(arguments)),
        "num_processes": PartialState().num_processes,
        "chatcore": _chatcore(reports),
        "tasks": {report.task: asdict(report) for report in reports},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _chatcore(reports: list[TaskReport]) -> dict[str, float]:
    return chatcore({report.task: report.accuracy for report in reports})


def _options(arguments: argparse.Namespace) -> EvaluationOptions:
    given = vars(arguments)
    return EvaluationOptions(**{field.name: given[field.name] for field in fields(EvaluationOptions) if field.name in given})


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def run(arguments: argparse.Namespace) -> list[TaskReport]:
    """Evaluate task by task, and save after each so that a run cut short keeps what it has."""
    tasks = create_tasks(arguments.tasks, arguments.data_root)
    model, tokenizer = load_model(arguments)
    reports = []
    for name, task in tasks.items():
        report = evaluate_task(name, task, model, tokenizer, _options(arguments))
        PartialState().print(f"{name}: {report.num_correct} of {report.num_problems}", file=sys.stderr, flush=True)
        reports.append(report)
        if arguments.output and PartialState().is_main_process:
            save_results(arguments.output, arguments, reports)
    return reports


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        reports = run(arguments)
    except (ValueError, OSError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    PartialState().print(format_table(reports))
    if arguments.update_card and PartialState().is_main_process:
        add_results(arguments.checkpoint, {report.task: report.accuracy for report in reports})
    return 0


if __name__ == "__main__":
    sys.exit(main())
