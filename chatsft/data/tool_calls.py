"""Tool calls as OpenAI's API has them, written as nanochat's: parts of the assistant's one message."""

import json

from chatsft.model.conversation import ConversationError, describe

CODE_TOOLS = ("python", "calculator", "code_interpreter", "ipython")
"""Tools that take code as their one argument; it becomes the python part as it is."""

RESULT_ROLES = ("tool", "function")


def has_calls(messages: list) -> bool:
    """Tell whether a message calls a tool in a field beside its content."""
    return any(list_calls(message) for message in messages if isinstance(message, dict))


def list_calls(message: dict) -> list:
    """Return a message's calls, those of the older field `function_call` too."""
    calls, older = message.get("tool_calls"), message.get("function_call")
    if calls:
        return calls if isinstance(calls, list) else [calls]
    return [{"function": older}] if older else []


def count_calls(messages: list) -> int:
    return sum(len(list_calls(message)) for message in messages if isinstance(message, dict))


def fold_tool_calls(messages: list) -> list:
    """Fold calls, their results and what the assistant says around them into one assistant message of parts.

    Results go after their calls, by `tool_call_id` or in order. A call without a result can only end the conversation.

    >>> calls = [{"id": "1", "function": {"name": "calculator", "arguments": '{"expression": "2*3"}'}}]
    >>> folded = fold_tool_calls([
    ...     {"role": "assistant", "content": None, "tool_calls": calls},
    ...     {"role": "tool", "tool_call_id": "1", "content": "6"},
    ...     {"role": "assistant", "content": "It is 6."},
    ... ])
    >>> [part["text"] for part in folded[0]["content"]]
    ['2*3', '6', 'It is 6.']
    """
    folded, exchange = [], None
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role == "assistant" and (exchange or list_calls(message)):
            if exchange is None:
                exchange = Exchange()
                folded.append(exchange)
            exchange.say(index, message)
        elif role in RESULT_ROLES and exchange:
            exchange.answer(index, message)
        else:
            if exchange:
                exchange.check_answered()
            exchange = None
            folded.append(message)
    return [turn.message() if isinstance(turn, Exchange) else turn for turn in folded]


class Exchange:
    """An assistant's turn while it is folded: parts, and calls whose result is still to come."""

    def __init__(self):
        self.steps: list[list[dict]] = []  # a part, or a call's part and its result's
        self.waiting: list[tuple[int, str | None, list[dict]]] = []  # message, call id, step

    def say(self, index: int, message: dict) -> None:
        """Add an assistant message: what it says, then what it calls."""
        self.check_answered()
        content = message.get("content")
        if isinstance(content, str):
            self.steps += [[{"type": "text", "text": content}]] if content else []
        elif isinstance(content, list):
            self.steps += [[part] for part in content]
        elif content is not None:
            raise ConversationError(f"message {index} (assistant) has content of {describe(content)}, expected a string or a list of parts")
        for call in list_calls(message):
            if not isinstance(call, dict):
                raise ConversationError(f"message {index} has a tool call of {describe(call)}, expected an object with function")
            step = [{"type": "python", "text": write_call(index, call.get("function"))}]
            self.steps.append(step)
            self.waiting.append((index, call.get("id"), step))

    def answer(self, index: int, message: dict) -> None:
        """Put a result after its call."""
        wanted = message.get("tool_call_id")
        found = [place for place, (_, call_id, _) in enumerate(self.waiting) if wanted is None or call_id in (None, wanted)]
        if not found:
            calls = ", ".join(repr(call_id) for _, call_id, _ in self.waiting) or "none"
            named = "a call" if wanted is None else f"call {wanted!r}"
            problem = f"message {index} ({message['role']}) is the result of {named}, but calls without a result are {calls}."
            raise ConversationError(f"{problem} Correct its tool_call_id.")
        _, _, step = self.waiting.pop(found[0])
        step.append({"type": "python_output", "text": write_result(message.get("content"))})

    def check_answered(self) -> None:
        """Raise if a call has no result and the conversation goes on."""
        if self.waiting:
            index, _, [call] = self.waiting[0]
            raise ConversationError(
                f"message {index} calls {call['text']} and has no result. Put a message with role tool behind it, or remove the call."
            )

    def message(self) -> dict:
        return {"role": "assistant", "content": [part for step in self.steps for part in step]}


def write_call(index: int, function: object) -> str:
    """Write a call as Python: the code of a tool that takes code, anything else as a call with keywords.

    >>> write_call(0, {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 2}'})
    "get_weather(city='Oslo', days=2)"
    """
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConversationError(f"message {index} has a tool call without a function name, expected {{name: ..., arguments: ...}}")
    name, arguments = function["name"], function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            if name in CODE_TOOLS:
                return arguments
            raise ConversationError(f"message {index} calls {name} with arguments that are not JSON ({error}). Correct them.") from None
    if not isinstance(arguments, dict):
        if name in CODE_TOOLS:
            return str(arguments)
        raise ConversationError(f"message {index} calls {name} with arguments of {describe(arguments)}, expected an object")
    given = {key: value for key, value in arguments.items() if value is not None}  # a table fills in None
    if name in CODE_TOOLS and len(given) == 1 and isinstance(code := next(iter(given.values())), str):
        return code
    if all(key.isidentifier() for key in given):
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
    return f"{name}(**{given!r})"


def write_result(content: object) -> str:
    """Write a result as text.

    >>> write_result([{"type": "text", "text": "6"}]), write_result({"celsius": 4})
    ('6', '{"celsius": 4}')
    """
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
