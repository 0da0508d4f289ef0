"""Evaluate a model on chat tasks and on conversations.

chatsft eval CHECKPOINT --tasks ARC-Easy GSM8K
chatsft eval CHECKPOINT --conversations chat.jsonl
accelerate launch -m chatsft.eval CHECKPOINT --output results.json --baseline other.json
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import datasets
import torch
import yaml
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from chatsft.data.mixture import load_mixture
from chatsft.evaluation import EvaluationOptions, evaluate_conversations, evaluate_task
from chatsft.evaluation.chat_format import check_askable
from chatsft.evaluation.comparison import compare_reports, load_earlier
from chatsft.evaluation.results import Results, describe_run, format_results, save_results
from chatsft.evaluation.statistics import BASELINES
from chatsft.evaluation.task_evaluation import ANSWERS_AT_A_TIME
from chatsft.evaluation.task_selection import select_tasks
from chatsft.generation.penalties import add_penalties, check_penalties
from chatsft.model.loading import load_any_tokenizer, load_model_and_tokenizer, load_tokenizer
from chatsft.model_card import CARD_FILE, add_results
from chatsft.program import exit_code

DEFAULTS = EvaluationOptions()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    arguments = parse_arguments(argv)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    return exit_code(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, save and print; what one part has found is saved before the next begins, so that a run cut short keeps it."""
    is_main_process = PartialState(cpu=not torch.accelerator.is_available()).is_main_process
    for results in evaluate(arguments):
        if arguments.output and is_main_process:
            save_results(arguments.output, results)
    if is_main_process:
        print(format_results(results))
    if arguments.update_card and is_main_process:
        add_results(arguments.checkpoint, {report.task: report.accuracy for report in results.reports})


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatsft eval", usage="chatsft eval CHECKPOINT ...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder written by save_pretrained, Hub id, or nanochat checkpoint folder")
    parser.add_argument("--tokenizer_path", help="another tokenizer; for a nanochat checkpoint the folder of tokenizer.pkl")
    parser.add_argument("--tasks", nargs="+", help=f"task names, also 'A|B|C' (default without --conversations: {' '.join(BASELINES)})")
    parser.add_argument(
        "--conversations", nargs="+", help="files, folders or Hub datasets, or mixture entries {...}: loss by turn, bits per byte"
    )
    parser.add_argument("--data_root", help="folder with the tasks' data as files; without it they come from the Hub")
    parser.add_argument("--max_problems", type=count, help="only the first problems of each task")
    parser.add_argument(
        "--batch_size", type=count, help=f"most problems at a time (default: {ANSWERS_AT_A_TIME} answers; letters by tokens)"
    )
    parser.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top_k", type=int, default=DEFAULTS.top_k, help="sample among the most likely, 0 is all (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=count, default=DEFAULTS.max_new_tokens, help="longest answer (default: %(default)s)")
    add_penalties(parser)
    parser.add_argument("--num_samples", type=count, default=DEFAULTS.num_samples, help="answers per problem (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the results, with every prompt, answer and verdict, to this JSON file")
    parser.add_argument("--baseline", type=Path, help="an earlier --output: print the paired difference in each task")
    parser.add_argument("--allow_weak_sandbox", action="store_true", help="run generated code even where it cannot be locked in")
    parser.add_argument("--update_card", action="store_true", help="put the accuracies into the model card in CHECKPOINT")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.temperature < 0 or arguments.top_k < 0:
        parser.error("--temperature and --top_k may be 0 or more")
    if arguments.output and (arguments.output.is_dir() or any(folder.is_file() for folder in arguments.output.parents)):
        parser.error(f"--output: no file can be written at {arguments.output}; name another, as scores.json")
    if arguments.update_card and not (Path(arguments.checkpoint) / CARD_FILE).is_file():
        parser.error(f"--update_card: {arguments.checkpoint} holds no model card ({CARD_FILE})")
    if arguments.tasks is None:
        arguments.tasks = [] if arguments.conversations else list(BASELINES)
    check_penalties(parser, arguments)
    return arguments


def check_tokenizer(arguments: argparse.Namespace) -> None:
    """See that the model can be asked: in its chat template's words for tasks, in nanochat's format for the loss by turn."""
    load = load_tokenizer if arguments.conversations else load_any_tokenizer
    check_askable(load(arguments.checkpoint, arguments.tokenizer_path))


def load_model(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer onto this rank's device, in bfloat16 on CUDA as nanochat evaluates."""
    device = PartialState(cpu=not torch.accelerator.is_available()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = load_model_and_tokenizer(arguments.checkpoint, arguments.tokenizer_path, dtype)
    return model.to(device).eval(), tokenizer


def load_conversations(words: list[str], data_root: str | None) -> datasets.Dataset:
    """Load the conversations that --conversations names: a word is a path, or a mixture entry in braces."""
    try:
        entries = [yaml.safe_load(word) if word.startswith("{") else {"path": word} for word in words]
    except yaml.YAMLError as error:
        raise ValueError(f"--conversations {' '.join(words)}: not a mixture entry ({' '.join(str(error).split())})") from error
    return load_mixture(entries, data_root=data_root, order="sequence")


def evaluate(arguments: argparse.Namespace) -> Iterator[Results]:
    """Load everything, so that what is missing is missed before the model runs, then give the results so far after each part."""
    check_tokenizer(arguments)  # a wrong name is missed before any data is fetched
    state = PartialState(cpu=not torch.accelerator.is_available())
    with state.main_process_first():
        tasks = select_tasks(arguments.tasks, arguments.data_root, arguments.allow_weak_sandbox)
        conversations = load_conversations(arguments.conversations, arguments.data_root) if arguments.conversations else None
    earlier = load_earlier(arguments.baseline, list(tasks)) if arguments.baseline else {}
    model, tokenizer = load_model(arguments)
    results = Results(run=describe_run(arguments.checkpoint, evaluation_options(arguments)))
    if conversations is not None:
        results.conversations = evaluate_conversations(conversations["messages"], model, tokenizer)
        yield results
    for name, task in tasks.items():
        start = time.perf_counter()
        report = evaluate_task(name, task, model, tokenizer, evaluation_options(arguments))
        seconds = time.perf_counter() - start
        state.print(f"{name}: {report.num_correct} of {report.num_problems} in {seconds:.1f} s", file=sys.stderr, flush=True)
        results.reports.append(report)
        yield results
    if earlier:
        results.differences = compare_reports(results.reports, earlier)
        yield results


def evaluation_options(arguments: argparse.Namespace) -> EvaluationOptions:
    given = vars(arguments)
    return EvaluationOptions(**{field.name: given[field.name] for field in fields(EvaluationOptions) if field.name in given})


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
