"""Show what a recipe trains on, before it does.

    chatsft preview recipes/sft.yaml [key=value ...] --num 3
    chatsft preview recipes/sft.yaml --stats
    chatsft preview recipes/sft.yaml --html preview.html --num 200

Trained tokens are green, the others red. Only the tokenizer is loaded, not the model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from chatsft.batches import load_conversations
from chatsft.data.rendering import first_tokens, render_dataset
from chatsft.inspection.advice import advise
from chatsft.inspection.page import save_preview_page
from chatsft.inspection.statistics import count_by_source, count_shared
from chatsft.inspection.tables import make_console, print_conversation, print_statistics
from chatsft.inspection.tokens import name_images
from chatsft.model.loading import load_any_tokenizer
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.model.vision import add_image_tokens
from chatsft.program import exit_code, recipe_parser
from chatsft.recipe import Recipe, load_recipe

UNCUT = 2**31 - 1
IN_TERMINAL, ON_PAGE = 3, 100
"""Conversations shown without --num."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options, overrides = parse_arguments(argv)
    title, on_cpu = f"Preview of {options.recipe}", [*overrides, "use_cpu=true"]  # a recipe for GPUs shows anywhere
    return exit_code(lambda: preview(load_recipe(options.recipe, on_cpu), options.num, options.stats, options.html, title))


def make_parser() -> argparse.ArgumentParser:
    parser = recipe_parser("preview", __doc__)
    parser.add_argument(
        "--num", type=int, metavar="N", help=f"conversations to show (default: the first {IN_TERMINAL}, or {ON_PAGE} on a page)"
    )
    parser.add_argument(
        "--stats", action="store_true", help="count conversations, turns and tokens by source, and warn of what looks wrong"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the counts and the conversations")
    return parser


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = make_parser()
    options, overrides = parser.parse_known_args(argv)
    if options.num is None:
        options.num = ON_PAGE if options.html else IN_TERMINAL
    if options.num < 0:
        parser.error("--num may be 0 or more")
    if options.num == 0 and not options.stats and not options.html:
        parser.error("--num 0 shows nothing; add --stats or --html")
    return options, overrides


def preview(recipe: Recipe, num: int = IN_TERMINAL, stats: bool = False, html: Path | None = None, title: str = "Preview") -> None:
    """Print the first conversations of the training mixture, or write them to a page; count the whole mixture where that is asked for.

    Args:
        num: conversations to show.
        stats: print the counts by source, and warnings.
        html: where a page goes, with `title` at its head.
    """
    datasets.disable_progress_bars()
    data, console = recipe.data, make_console()
    tokenizer = load_any_tokenizer(recipe.model.model_name_or_path, recipe.model.tokenizer_path)
    if recipe.model.vision_model is not None:
        add_image_tokens(tokenizer, recipe.model.vision_model)
    mixture = load_conversations("train_mixture", data.train_mixture, recipe)
    counts_all = stats or html is not None
    shown = mixture if counts_all else mixture.select(range(min(num, len(mixture))))
    rendered = render_dataset(shown, tokenizer, UNCUT, num_proc=data.dataset_num_proc, on_bad_row=data.on_bad_row)
    if html is None:
        for index in range(min(num, len(rendered))):
            print_conversation(console, *describe(rendered[index], index, len(mixture), tokenizer, data.max_length))
    if not counts_all:
        return
    mixture = keep_rendered(mixture, rendered)
    counts = count_by_source(mixture, rendered, tokenizer, data.max_length)
    shared = count_shared(mixture, load_conversations("eval_mixture", data.eval_mixture, recipe)) if data.eval_mixture else 0
    warnings = advise(counts, shared)
    if stats:
        print_statistics(console, counts, warnings)
    if html is not None:
        save_preview_page(html, title, rendered, counts, warnings, tokenizer, data.max_length, num)
        console.print(f"Wrote {html}", soft_wrap=True)


def keep_rendered(mixture: datasets.Dataset, rendered: datasets.Dataset) -> datasets.Dataset:
    """Leave out the conversations that rendering has left out (on_bad_row: skip)."""
    if len(mixture) == len(rendered):
        return mixture
    origins = set(rendered["origin"])
    return mixture.select([index for index, origin in enumerate(mixture["origin"]) if origin in origins])


def describe(row: dict, index: int, total: int, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[str, str]:
    """Write where a rendered conversation comes from and its size, and its tokens in color."""
    kept = first_tokens(row["input_ids"], tokenizer, max_length)
    ids, mask = row["input_ids"][kept], row["assistant_masks"][kept]
    head = f"{index + 1} of {total}: {row['origin']}, {len(ids)} tokens, {sum(mask)} trained{name_images(row)}"
    return head, GPTTokenizer.visualize_tokenization(tokenizer, ids, mask)


if __name__ == "__main__":
    sys.exit(main())
