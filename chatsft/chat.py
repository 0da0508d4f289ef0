"""Chat with a model in the terminal or on a web page.

chatsft chat CHECKPOINT
chatsft chat CHECKPOINT --prompt "How many r are in strawberry?" --temperature 0
chatsft chat CHECKPOINT --image photo.jpg --prompt "What is this?"
chatsft chat CHECKPOINT --web [--compare OTHER_CHECKPOINT]
"""

import argparse
import socket
import sys
import time
from collections.abc import Sequence

import torch
from transformers.utils.logging import disable_progress_bar

from chatsft.dialogue.speaker import AnswerSettings, Speaker
from chatsft.dialogue.terminal import TerminalChat, notice
from chatsft.generation.penalties import add_penalties, check_penalties
from chatsft.model.loading import load_chat_model
from chatsft.program import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parse_arguments(argv)
    disable_progress_bar()
    return exit_code(lambda: chat(options))


def chat(options: argparse.Namespace) -> None:
    """Talk until the person leaves, on a page or in the terminal, or answer one prompt."""
    if options.web:
        check_address(options.host, options.port)
    settings = AnswerSettings(**{name: vars(options)[name] for name in AnswerSettings.__dataclass_fields__})
    speakers = [load_speaker(name, options) for name in (options.checkpoint, options.compare) if name]
    if options.web:
        return serve_page(speakers, settings, options)
    [speaker] = speakers
    terminal = TerminalChat(speaker, speaker.start(settings, options.system), settings)
    for path in options.image:
        terminal.add_image(path)
    if options.prompt is None:
        terminal.run()
    else:
        terminal.answer(options.prompt)


def load_speaker(name: str, options: argparse.Namespace) -> Speaker:
    """Load a checkpoint to talk to, in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    return Speaker(name, *load_chat_model(name, options.tokenizer_path, device=options.device, dtype=dtype))


def check_address(host: str, port: int | None) -> None:
    """See before the model is loaded that the page can be served there."""
    try:
        with socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        place = f"--host {host}" if port is None else f"--host {host} --port {port}"
        raise ValueError(f"{place}: cannot serve there ({error}). Name another, or leave them out.") from error


def serve_page(speakers: list[Speaker], settings: AnswerSettings, options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    try:
        from chatsft.dialogue.web import LOCAL_HOSTS, Page
    except ModuleNotFoundError as error:
        raise ValueError(f"--web needs gradio ({error}). Install it with: pip install 'chatsft[ui]'") from error
    if options.host not in LOCAL_HOSTS:
        notice(f"The page is served on {options.host}: whoever reaches this port can talk to the model.")
    page = Page(speakers, settings, options.system)
    print(f"Talk to it at {page.launch(options.host, options.port)} (Ctrl-C to end)", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()
    finally:
        page.blocks.close(verbose=False)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatsft chat", usage="chatsft chat CHECKPOINT ...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder written by save_pretrained, Hub id, or nanochat checkpoint folder")
    parser.add_argument("--tokenizer_path", help="another tokenizer; for a nanochat checkpoint the folder of tokenizer.pkl")
    parser.add_argument("--prompt", help="answer this once, to stdout, and exit")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="show it with the first message; may be repeated")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system text, put in front of the first message")
    add_answer_settings(parser)
    parser.add_argument("--device", type=_usable_device, default=_default_device(), help="default: %(default)s")
    page = parser.add_argument_group("web page")
    page.add_argument("--web", action="store_true", help="serve a page on this computer in place of the terminal (needs chatsft[ui])")
    page.add_argument("--compare", metavar="CHECKPOINT", help="a second model, answering beside the first")
    page.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this computer only)")
    page.add_argument("--port", type=int, help="default: the first free one from 7860")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.temperature < 0 or options.top_k < 0 or options.max_new_tokens < 1:
        parser.error("--temperature and --top_k may be 0 or more, --max_new_tokens 1 or more")
    if options.port is not None and not 0 < options.port < 65536:
        parser.error("--port is a number from 1 to 65535")
    if options.web and options.prompt is not None:
        parser.error("--prompt is answered in the terminal; leave out one of --web and --prompt")
    if options.web and options.image:
        parser.error("--image is shown in the terminal; leave out one of --web and --image")
    if options.compare and not options.web:
        parser.error("--compare shows two models side by side on the page; add --web")
    check_penalties(parser, options)
    return options


def add_answer_settings(parser: argparse.ArgumentParser) -> None:
    """Give a program the flags of AnswerSettings."""
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top_k", type=int, default=50, help="sample among the most likely tokens, 0 is all (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    add_penalties(parser)
    parser.add_argument("--seed", type=int, help="make the answers repeatable")


def _default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _usable_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name} is not usable here: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
