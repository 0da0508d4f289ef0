"""Every key of a recipe as Markdown tables, from the dataclasses that are the keys and from their docstrings."""

import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields

import griffe

from chatsft.arguments import ChatArguments, DataArguments, ModelArguments
from chatsft.preference.arguments import DPOArguments, GRPOArguments, PairArguments, PromptArguments
from chatsft.recipe import OF_CHAT, REPLACED

TABLES = {  # by the name in recipe_keys.md
    "model": ModelArguments,
    "data": DataArguments,
    "training": ChatArguments,
    "transformers": ChatArguments,
    "pairs": PairArguments,
    "prompts": PromptArguments,
    "dpo": DPOArguments,
    "grpo": GRPOArguments,
}
NOT_OURS = ("transformers", "dpo", "grpo")
"""Tables of the keys that the libraries describe; the others are of those that our own docstrings do."""

MARKER = re.compile(r"^<!-- keys: (\w+) -->$", re.MULTILINE)


class Key(typing.NamedTuple):
    """A key of a recipe as people read it."""

    name: str
    kind: str
    default: str
    meaning: str


def fill_tables(page: str) -> str:
    """Put a table in place of every line `<!-- keys: NAME -->`; NAME is one of TABLES, or `replaced`."""
    return MARKER.sub(lambda marker: format_table(marker[1]), page)


def format_table(name: str) -> str:
    if name == "replaced":
        rows = ["| key | use |", "|---|---|", *(f"| `{key}` | {use} |" for key, use in (REPLACED | OF_CHAT).items())]
    else:
        rows = ["| key | type | default | what |", "|---|---|---|---|", *map(format_row, list_keys(name))]
    return "\n".join(rows)


def format_row(key: Key) -> str:
    """Write a key as a row of a table.

    >>> format_row(Key("packing", "bool", "true", "put several into a row."))
    '| `packing` | bool | `true` | put several into a row. |'
    """
    kind, meaning = (text.replace("|", "\\|") for text in (key.kind, key.meaning))
    return f"| `{key.name}` | {kind} | {f'`{key.default}`' if key.default else 'required'} | {meaning} |"


def list_keys(table: str) -> Iterator[Key]:
    """List the keys of a table in the order of their definition."""
    owner, ours = TABLES[table], read_meanings(TABLES[table])
    elsewhere = {entry.name for entry in fields(ChatArguments)} if owner in (DPOArguments, GRPOArguments) else REPLACED | OF_CHAT
    for entry in fields(owner):
        if entry.init and entry.name not in elsewhere and (entry.name not in ours) == (table in NOT_OURS):
            meaning = ours.get(entry.name) or first_sentence(find_help(owner, entry.name))
            yield Key(entry.name, format_type(entry.type), format_default(entry), meaning)


def read_meanings(owner: type) -> dict[str, str]:
    """Read what the Args sections of a class of ours, and of those it extends, say of each field."""
    meanings = {}
    for base in reversed(owner.__mro__):
        if base.__module__.startswith("chatsft."):
            sections = griffe.Docstring(inspect.cleandoc(base.__doc__), parser="google").parse(warnings=False)
            arguments = (section.value for section in sections if section.kind is griffe.DocstringSectionKind.parameters)
            meanings |= {argument.name: " ".join(argument.description.split()) for found in arguments for argument in found}
    return meanings


def find_help(owner: type, name: str) -> str:
    """Find what the library says of a field, whose default we may have changed since."""
    inherited = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in owner.__mro__)
    return next((entry.metadata["help"] for entry in inherited if entry and "help" in entry.metadata), "")


def first_sentence(text: str) -> str:
    """Cut a description after its first sentence.

    >>> first_sentence("Batch size per device (e.g. a GPU). With more,\\n    it is a sum.")
    'Batch size per device (e.g. a GPU).'
    """
    return re.split(r"(?<=[^.][^.]\.)\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]


def format_type(hint: object) -> str:
    """Write a type as in a signature; that a key may be null is told by its default.

    >>> format_type(int | dict | None), format_type(list[str])
    ('int or dict', 'list of str')
    """
    if isinstance(hint, str):
        return hint.replace("|", "or")
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(format_type(option) for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) in (list, dict, tuple):
        inner = ", ".join(map(format_type, typing.get_args(hint)))
        return f"{typing.get_origin(hint).__name__} of {inner}"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def format_default(entry: Field) -> str:
    """Write a default as a recipe spells it; nothing for a required key."""
    if entry.default_factory is not MISSING:
        return format_value(entry.default_factory())
    return "" if entry.default is MISSING else format_value(entry.default)


def format_value(value: object) -> str:
    """Write a value as YAML on one line.

    >>> format_value(None), format_value({"generative": 64}), format_value(["labels"]), format_value(1e-8)
    ('null', '{generative: 64}', '[labels]', '1e-08')
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {format_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or '""'
