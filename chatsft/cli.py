"""The `chatsft` command: `chatsft train recipes/sft.yaml` runs `chatsft.train`, and so on for every program."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from chatsft import __version__

VERBS = {
    "train": "fine-tune a base model into a chat model",
    "dpo": "teach a chat model to prefer one answer to another",
    "grpo": "reward a chat model for right answers",
    "eval": "evaluate a model on chat tasks",
    "chat": "talk to a model",
    "serve": "serve a model over HTTP",
    "convert": "convert models between nanochat and transformers",
    "preview": "show what a recipe trains on",
    "report": "show how runs went, and compare them",
    "doctor": "look at what chatsft finds on this machine",
    "completion": "print what makes a shell complete these commands",
}
EXAMPLES = """\
examples:
  chatsft preview recipes/quickstart.yaml --stats
  chatsft train recipes/quickstart.yaml max_steps=20 output_dir=runs/short
  chatsft eval runs/quickstart --tasks Arithmetic
  chatsft chat runs/quickstart
  chatsft report runs/quickstart

chatsft VERB --help shows what a verb takes. On several GPUs: accelerate launch -m chatsft.VERB ..."""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments after the verb to its program, which alone is imported; return its exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.verb is None:
        parser.print_help()
        return 0
    if options.verb not in VERBS:
        print(f"error: {describe_unknown(options.verb)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"chatsft.{options.verb}").main(options.arguments)


def make_parser() -> argparse.ArgumentParser:
    """Take a verb and leave what follows to its program."""
    verbs = "\n".join(f"  {verb:<12}{purpose}" for verb, purpose in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="chatsft",
        usage="chatsft VERB ...",
        description=f"Chat fine-tuning for nanochat models inside the Hugging Face ecosystem.\n\nverbs:\n{verbs}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"chatsft {__version__}")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def describe_unknown(verb: str) -> str:
    """Name the verb that was probably meant.

    >>> describe_unknown("trian")
    "there is no verb 'trian'. Did you mean train? chatsft --help lists all."
    """
    nearest = difflib.get_close_matches(verb.lower(), VERBS, n=1, cutoff=0.4)
    return f"there is no verb {verb!r}." + (f" Did you mean {nearest[0]}?" if nearest else "") + " chatsft --help lists all."


if __name__ == "__main__":
    sys.exit(main())
