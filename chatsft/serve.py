"""Serve a model over HTTP, as OpenAI's API: transformers' own server, with this package's models known to it.

    chatsft serve CHECKPOINT [--port 8000] [what `transformers serve` takes]

`transformers serve` looks a model's class up in transformers alone, so it cannot load models that bring their code along.
`transformers chat` and every OpenAI client talk to either.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import transformers
from transformers.cli.transformers import app
from transformers.utils.import_utils import is_serve_available

from chatsft.model.loading import is_adapter, load_tokenizer
from chatsft.model.modeling_gpt import GPTForCausalLM
from chatsft.model.nanochat_checkpoint import is_nanochat_checkpoint
from chatsft.program import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is stopped; a model that does not load ends it with one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if code := exit_code(lambda: check_serving(arguments)):
        return code
    transformers.GPTForCausalLM = GPTForCausalLM
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return app(["serve", *arguments], standalone_mode=False) or 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the arguments for completion; the server reads them itself, and --help is its own."""
    parser = argparse.ArgumentParser(prog="chatsft serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    return parser


def check_serving(arguments: Sequence[str]) -> None:
    """Look at the model that is to be served before the server starts."""
    if not is_serve_available():
        raise ValueError("the server needs fastapi, uvicorn, openai and pydantic. Install them: pip install 'chatsft[serving]'.")
    if not arguments or arguments[0].startswith("-"):
        return
    name = arguments[0]
    if is_nanochat_checkpoint(name):
        raise ValueError(f"{name} is a nanochat checkpoint, which this server does not read. Convert it first: chatsft convert to-hf.")
    if is_adapter(name):
        raise ValueError(f"{name} is an adapter, which this server does not read. Train with merge_adapter=true, and serve its merged/.")
    if load_tokenizer(name).num_image_tokens:
        raise ValueError(f"{name} reads images, which this server does not take. Talk to it with chatsft chat.")


if __name__ == "__main__":
    sys.exit(main())
