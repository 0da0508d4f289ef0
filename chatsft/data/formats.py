"""Layouts of a conversation in the wild, turned into `messages`; raw text stays a string in their place."""

from chatsft.model.tokenization_gpt import ConversationError

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
LAYOUTS = (
    '{"messages": [...]}, a list of messages, {"prompt": ..., "completion": ...} '
    '{"conversations": [{"from": "human", "value": ...}, ...]} or, for raw text, {"text": ...}'
)


def to_messages(value: object, columns: dict | None = None) -> list | str:
    """Find the messages in one line or row, or its raw text.

    Args:
        columns: where they are when the names are not the usual ones: {"messages": column}, {"prompt": column, "completion": column} or
            {"text": column}.

    >>> to_messages({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]})
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    >>> to_messages({"question": "1+1", "answer": "2"}, {"prompt": "question", "completion": "answer"})
    [{'role': 'user', 'content': '1+1'}, {'role': 'assistant', 'content': '2'}]
    >>> to_messages({"text": "Once upon a time."})
    'Once upon a time.'
    """
    if columns is not None:
        return map_columns(value, columns)
    if isinstance(value, list):
        return convert_turns(value)
    if isinstance(value, dict):
        for column in ("messages", "conversations"):
            if column in value:
                return convert_turns(value[column])
        if "prompt" in value and "completion" in value:
            return pair_messages(value["prompt"], value["completion"])
        if "text" in value:
            return check_text(value["text"])
    raise ConversationError(f"no conversation in {describe(value)}; expected {LAYOUTS}, or name the columns in `columns`")


def map_columns(row: object, columns: dict) -> list:
    """Read the messages, a prompt and its completion, or a text from the columns named."""
    for column in columns.values():
        if not isinstance(row, dict) or column not in row:
            raise ConversationError(f"no column {column!r} in {describe(row)}")
    if "messages" in columns:
        return convert_turns(row[columns["messages"]])
    if "text" in columns:
        return check_text(row[columns["text"]])
    return pair_messages(row[columns["prompt"]], row[columns["completion"]])


def pair_messages(prompt: object, completion: object) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def check_text(text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ConversationError(f"the text is {describe(text) if text else 'empty'}, expected a string to train on")
    return text


def convert_turns(turns: object) -> object:
    """Rename ShareGPT's from and value; leave messages as they are (they are checked later)."""
    if not isinstance(turns, list) or not any(isinstance(turn, dict) and "from" in turn for turn in turns):
        return turns
    return [convert_turn(number, turn) for number, turn in enumerate(turns)]


def convert_turn(number: int, turn: object) -> dict:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise ConversationError(f"turn {number} is {describe(turn)}, expected from and value")
    if turn["from"] not in SHAREGPT_ROLES:
        raise ConversationError(
            f"turn {number} is from {turn['from']!r}, expected human, gpt or system. "
            "Tool calls and their results go into the assistant's content, as python and python_output parts."
        )
    return {"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}


def describe(value: object) -> str:
    """Name a value for an error: a dict by its keys, anything else by its type."""
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return f"a {type(value).__name__}"
