"""Docstrings as the API reference needs them: examples and commands as code blocks, brackets as brackets."""

import re

import griffe

PIECES = re.compile(
    r"(?P<code>^(?:>>> |python -m |accelerate launch ).*(?:\n(?!\s*$).+)*)"
    r"|`[^`]*`|(?<=\n\n) {4}.*(?:\n {4}.*)*"  # code already
    r"|(?P<brackets>\] ?\[)",
    re.MULTILINE,
)


class MarkdownDocstrings(griffe.Extension):
    """Make Markdown of our docstrings, which are plain text: it takes `>>>` for a quotation and `[1][2]` for a link."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    r"""Fence each run of lines from a prompt or a command to an empty line, and escape what would be a link elsewhere.

    >>> to_markdown("Add [a] [b].\n\npython -m sums [a] [b]")
    'Add [a] \\[b].\n\n```\npython -m sums [a] [b]\n```'
    """
    return PIECES.sub(_turn, docstring)


def _turn(piece: re.Match) -> str:
    if piece["code"]:
        return f"```{'pycon' if piece['code'].startswith('>>>') else ''}\n{piece['code']}\n```"
    return piece[0].replace("[", "\\[") if piece["brackets"] else piece[0]
