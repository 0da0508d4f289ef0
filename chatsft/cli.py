"""The `chatsft` command: `chatsft train recipes/sft.yaml` runs `chatsft.train`, and so on for every program."""

import difflib
import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "train": "fine-tune a base model into a chat model",
    "dpo": "teach a chat model to prefer one answer to another",
    "grpo": "reward a chat model for right answers",
    "eval": "evaluate a model on chat tasks",
    "chat": "talk to a model",
    "serve": "serve a model over HTTP",
    "convert": "convert models between nanochat and transformers",
    "preview": "show what a recipe trains on",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments after the verb to its program, which alone is imported; return its exit code."""
    verb, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print(format_help())
        return 0
    if verb not in VERBS:
        print(f"error: {describe_unknown(verb)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"chatsft.{verb}").main(arguments)


def format_help() -> str:
    """List the verbs, one line each."""
    lines = [f"  {verb:<10}{purpose}" for verb, purpose in VERBS.items()]
    return "\n".join(
        [
            "usage: chatsft VERB ...",
            "",
            *lines,
            "",
            "chatsft VERB --help lists what a verb takes. On several GPUs: accelerate launch -m chatsft.VERB ...",
        ]
    )


def describe_unknown(verb: str) -> str:
    """Name the verb that was probably meant.

    >>> describe_unknown("trian")
    "there is no verb 'trian'. Did you mean train? chatsft --help lists all."
    """
    nearest = difflib.get_close_matches(verb.lower(), VERBS, n=1, cutoff=0.4)
    return f"there is no verb {verb!r}." + (f" Did you mean {nearest[0]}?" if nearest else "") + " chatsft --help lists all."


if __name__ == "__main__":
    sys.exit(main())
