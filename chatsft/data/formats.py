"""Layouts of a conversation in the wild, turned into `messages`; raw text stays a string in their place."""

import json
from typing import NamedTuple

from chatsft.data.tool_calls import count_calls, fold_tool_calls, has_calls
from chatsft.model.conversation import ConversationError, join_text_parts

SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
}
OTHER_ROLES = {"developer": "system"}
PAIRS = (("question", "answer"), ("query", "response"), ("prompt", "response"), ("instruction", "response"), ("input", "output"))
"""Names that pairs of columns often have; which one is the prompt is for the recipe to say."""

LAYOUTS = (
    '{"messages": [...]}, a list of messages, {"prompt": ..., "completion": ...}, {"instruction": ..., "output": ...}, '
    '{"conversations": [{"from": "human", "value": ...}, ...]} or, for raw text, {"text": ...}'
)


class Mapped(NamedTuple):
    """What a line or row was read as: messages or a text, the layout, calls that became parts, fields that were not used."""

    messages: list | str
    layout: str
    num_calls: int = 0
    unused: tuple[str, ...] = ()


def to_messages(value: object, columns: dict | None = None) -> Mapped:
    """Find the messages in one line or row, or its raw text.

    Args:
        columns: where they are when the names are not the usual ones: {"messages": column}, {"prompt": column, "completion": column} or
            {"text": column}.

    >>> to_messages({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 7})
    Mapped(messages=[{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}], layout='ShareGPT turns', num_calls=0, \
unused=('id',))
    >>> to_messages({"question": "1+1", "answer": "2"}, {"prompt": "question", "completion": "answer"}).messages
    [{'role': 'user', 'content': '1+1'}, {'role': 'assistant', 'content': '2'}]
    >>> to_messages({"text": "Once upon a time."}).messages
    'Once upon a time.'
    """
    if columns is not None:
        return map_columns(value, columns)
    if isinstance(value, list):
        return map_turns(value)
    fields = {key: field for key, field in value.items() if field is not None} if isinstance(value, dict) else {}
    for column in ("messages", "conversations"):
        if column in fields:
            return map_turns(fields[column], fields.get("system"), unused(fields, column, "system"))
    if "prompt" in fields and "completion" in fields:
        return map_pair(fields["prompt"], fields["completion"], unused(fields, "prompt", "completion"))
    if "instruction" in fields and "output" in fields:
        return map_alpaca(fields)
    if "text" in fields:
        return Mapped(check_text(fields["text"]), "raw text", 0, unused(fields, "text"))
    raise ConversationError(f"no conversation in {describe(value)}; {suggest_columns(fields)}")


def map_columns(row: object, columns: dict) -> Mapped:
    """Read the messages, a prompt and its completion, or a text from the columns named."""
    for column in columns.values():
        if not isinstance(row, dict) or column not in row:
            raise ConversationError(f"no column {column!r} in {describe(row)}. Correct `columns` in the recipe.")
    if "messages" in columns:
        return map_turns(row[columns["messages"]])
    if "text" in columns:
        return Mapped(check_text(row[columns["text"]]), "raw text")
    return map_pair(row[columns["prompt"]], row[columns["completion"]])


def map_pair(prompt: object, completion: object, unused: tuple[str, ...] = ()) -> Mapped:
    """Read a prompt and its completion; either may be a list of messages, as TRL has it."""
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    reply = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return map_turns([*turns, *reply], unused=unused)._replace(layout="prompt and completion")


def map_alpaca(fields: dict) -> Mapped:
    """Read an instruction with its input, an empty line between them, and the output, after the pairs of an optional history.

    >>> to_messages({"instruction": "Translate.", "input": "Hund", "output": "dog"}).messages[0]["content"]
    'Translate.\\n\\nHund'
    """
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ConversationError("history is not a list of [instruction, output] pairs. Correct it, or remove it.")
    question = "\n\n".join(text for text in (fields["instruction"], fields.get("input")) if isinstance(text, str) and text)
    pairs = [*history, [question, fields["output"]]]
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    known = ("instruction", "input", "output", "history", "system")
    return map_turns(turns, fields.get("system"), unused(fields, *known))._replace(layout="Alpaca fields")


def map_turns(turns: object, system: object = None, unused: tuple[str, ...] = ()) -> Mapped:
    """Rename ShareGPT's from and value, fold tool calls and join text parts; other messages stay as they are (they are checked later).

    Args:
        system: a system text that stands beside the turns.
    """
    if not isinstance(turns, list):
        raise ConversationError(f"messages is {describe(turns)}, expected a list of {{role, content}}{text_hint(turns)}")
    is_sharegpt = any(isinstance(turn, dict) and "from" in turn for turn in turns)
    messages = [convert_turn(number, turn) for number, turn in enumerate(turns)] if is_sharegpt else turns
    messages = [rename_role(message) for message in messages]
    if isinstance(system, str) and system:
        messages = [{"role": "system", "content": system}, *messages]
    num_calls = count_calls(messages) if has_calls(messages) else 0
    messages = [join_texts(message) for message in (fold_tool_calls(messages) if num_calls else messages)]
    return Mapped(messages, "ShareGPT turns" if is_sharegpt else "messages", num_calls, unused)


def convert_turn(number: int, turn: object) -> dict:
    """Write a turn of ShareGPT's as a message."""
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise ConversationError(f"turn {number} is {describe(turn)}, expected from and value")
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": read_calls(number, turn["value"])}
    if turn["from"] not in SHAREGPT_ROLES:
        raise ConversationError(
            f"turn {number} is from {turn['from']!r}, expected human, gpt, system, function_call or observation. Rename it, or remove it."
        )
    return {"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}


def read_calls(number: int, value: object) -> list[dict]:
    """Read the call, or the calls, of a turn from function_call."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ConversationError(f"turn {number} (function_call) is not JSON ({error}). Write {{name, arguments}}.") from None
    return [{"function": call} for call in (calls if isinstance(calls, list) else [calls])]


def rename_role(message: object) -> object:
    """Give a message the role nanochat has for it, as it is if it needs no other."""
    role = message.get("role") if isinstance(message, dict) else None
    return message | {"role": OTHER_ROLES[role]} if isinstance(role, str) and role in OTHER_ROLES else message


def join_texts(message: object) -> object:
    """Join a user's or system's content of text parts; any other is left to the check of the conversation."""
    try:
        return join_text_parts(message)
    except ConversationError:
        return message


def text_hint(turns: object) -> str:
    """Say what a text in place of messages was meant as.

    >>> text_hint('[{"role": "user", "content": "Hi"}]')
    '. They are JSON in quotes: write them without.'
    """
    if not isinstance(turns, str):
        return ""
    return ". They are JSON in quotes: write them without." if turns.lstrip().startswith("[") else ". Raw text goes under text."


def check_text(text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ConversationError(f"the text is {describe(text) if text else 'empty'}, expected a string to train on")
    return text


def unused(fields: dict, *used: str) -> tuple[str, ...]:
    """Name the fields that say nothing here."""
    return tuple(str(key) for key in fields if key not in used)


def suggest_columns(fields: dict) -> str:
    """Say what `columns` would be for names often met, or which layouts there are.

    >>> suggest_columns({"question": "1+1", "answer": "2"})
    'for its question and answer, add columns: {prompt: question, completion: answer} to the entry'
    """
    pair = next((pair for pair in PAIRS if set(pair) <= set(fields)), None)
    if pair is None:
        return f"expected {LAYOUTS}, or name the columns in `columns`"
    return f"for its {pair[0]} and {pair[1]}, add columns: {{prompt: {pair[0]}, completion: {pair[1]}}} to the entry"


def describe(value: object) -> str:
    """Name a value for an error: a dict by its keys, anything else by its type."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return "a text" if isinstance(value, str) else f"a {type(value).__name__}"
