"""Show what a recipe trains on, before it does.

    python -m chatsft.preview recipes/sft.yaml [key=value ...] [--num N] [--stats]

Trained tokens are green, the others red. Only the tokenizer is loaded, not the model.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import datasets
from transformers import PreTrainedTokenizerBase

from chatsft.data.mixture import load_mixture
from chatsft.data.rendering import conversation_renderer, render_dataset
from chatsft.model.loading import load_any_tokenizer
from chatsft.model.tokenization_gpt import GPTTokenizer
from chatsft.recipe import Recipe, load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; bad input ends it with one line on stderr and exit code 2."""
    options, overrides = parse_arguments(argv)
    datasets.disable_progress_bars()
    try:
        preview(load_recipe(options.recipe, [*overrides, "use_cpu=true"]), options.num, options.stats)  # a recipe for GPUs shows anywhere
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="chatsft.preview", description="Show what a recipe trains on.", allow_abbrev=False)
    parser.add_argument("recipe", help="YAML file; any key can follow as key=value or --key value")
    parser.add_argument("--num", type=int, default=3, metavar="N", help="conversations to show, from the first (default: %(default)s)")
    parser.add_argument("--stats", action="store_true", help="count conversations, turns and tokens by source")
    options, overrides = parser.parse_known_args(argv)
    if options.num < 0:
        parser.error("--num may be 0 or more")
    return options, overrides


def preview(recipe: Recipe, num: int, stats: bool) -> None:
    """Print the first conversations of the training mixture and, if asked, the table of its sources."""
    data = recipe.data
    tokenizer = load_any_tokenizer(recipe.model.model_name_or_path, recipe.model.tokenizer_path)
    places = {"data_root": data.data_root, "folders": (recipe.folder, ".")}
    mixture = load_mixture(data.train_mixture, **places, order=data.mixture_order, on_bad_row=data.on_bad_row)
    shown = mixture if stats else mixture.select(range(min(num, len(mixture))))
    rendered = render_dataset(shown, tokenizer, data.max_length, num_proc=data.dataset_num_proc)
    for index in range(min(num, len(mixture))):
        print(f"{index + 1} of {len(mixture)}: {format_conversation(rendered[index], tokenizer)}\n")
    if stats:
        print(format_table(count_by_source(mixture, rendered, tokenizer, data.max_length)))


def format_conversation(row: dict, tokenizer: PreTrainedTokenizerBase) -> str:
    """Write where a rendered conversation comes from, its size, and its tokens in color."""
    ids, mask = row["input_ids"], row["assistant_masks"]
    return f"{row['origin']}, {len(ids)} tokens, {sum(mask)} trained\n{GPTTokenizer.visualize_tokenization(tokenizer, ids, mask)}"


@dataclass
class Counts:
    """What a source holds: turns are user messages, trained tokens are those with a loss, truncated conversations exceed max_length."""

    conversations: int = 0
    turns: int = 0
    tokens: int = 0
    trained: int = 0
    truncated: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def count_by_source(
    mixture: datasets.Dataset, rendered: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Counts]:
    """Count what training sees of every source, the largest first."""
    counts = defaultdict(Counts)
    for conversation, row in zip(mixture, rendered.with_format("numpy"), strict=True):
        messages, mask = conversation["messages"], row["assistant_masks"]
        num_turns = 0 if isinstance(messages, str) else sum(message["role"] == "user" for message in messages)
        truncated = len(mask) == max_length and is_longer(messages, tokenizer, max_length)
        counts[conversation["source"]] += Counts(1, num_turns, len(mask), int(mask.sum()), int(truncated))
    return dict(sorted(counts.items(), key=lambda item: -item[1].tokens))


def is_longer(messages: list[dict] | str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    """Tell whether a conversation has more than `max_length` tokens."""
    ids, _ = conversation_renderer(tokenizer)({"messages": messages})
    return len(ids) > max_length


def format_table(counts: dict[str, Counts]) -> str:
    """Lay out the counts, one line a source and one for all of them.

    >>> print(format_table({"GSM8K": Counts(2, 2, 400, 300, 1)}))
    source   conversations      turns      tokens   supervised   truncated
    GSM8K                2          2         400       75.0 %           1
    total                2          2         400       75.0 %           1
    """
    rows = counts | {"total": sum(counts.values(), start=Counts())}
    width = max(len(source) for source in ["source", *rows])
    lines = [f"{'source':<{width}}{'conversations':>16}{'turns':>11}{'tokens':>12}{'supervised':>13}{'truncated':>12}"]
    for source, count in rows.items():
        share = f"{count.trained / count.tokens:.1%}".replace("%", " %")
        lines.append(f"{source:<{width}}{count.conversations:>16,}{count.turns:>11,}{count.tokens:>12,}{share:>13}{count.truncated:>12,}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
