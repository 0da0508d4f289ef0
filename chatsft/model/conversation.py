"""nanochat's chat format: which conversations it holds, what they render to, and the same as a chat template."""

SPECIAL_TOKENS = (  # in nanochat's order: the last nine ids of every vocabulary
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
IMAGE_TOKEN = "<|image|>"
"""Stands once for each vector that the vision encoder makes of an image."""

IMAGE_TOKENS = ("<|image_start|>", IMAGE_TOKEN, "<|image_end|>")
"""Added behind the special tokens where a model learns to read images."""

PARTS = {  # part type: opening marker, closing marker, whether the model is trained on them and what is between
    "text": ("", "", 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
    "image": ("<|image_start|>", "<|image_end|>", 0),
}
ASSISTANT_PARTS = ("text", "python", "python_output")
USER_PARTS = ("text", "image")
ROLE_HINTS = {
    "tool": "Put tool output in a python_output part.",
    "system": "Only the first message can be a system message, and a user message follows it.",
}
# For servers that know only templates. GPTTokenizer does not take ids from it: a template joins everything to one string, where
# neighbouring parts can merge and special-token text inside content turns into the token.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] != 'text' -%}
                {{- raise_exception('Only an assistant message can hold a part of type ' + part['type']) -}}
            {%- endif -%}
            {{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = text_of(messages[0]['content']) + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set content = message['content'] -%}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('Roles alternate user, assistant after an optional system message; found ' + message['role']) -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|user_start|>' + (system if loop.first else '') + text_of(content) + '<|user_end|>' -}}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}
            {%- set end = '<|assistant_end|>' if loop.last else '' -%}
            {%- if part['type'] == 'text' -%}
                {%- generation -%}{{- part['text'] + end -}}{%- endgeneration -%}
            {%- elif part['type'] == 'python' -%}
                {%- generation -%}{{- '<|python_start|>' + part['text'] + '<|python_end|>' + end -}}{%- endgeneration -%}
            {%- elif part['type'] == 'python_output' -%}
                {{- '<|output_start|>' + part['text'] + '<|output_end|>' -}}
                {%- if end -%}{%- generation -%}{{- end -}}{%- endgeneration -%}{%- endif -%}
            {%- else -%}
                {{- raise_exception('Unknown part type ' + part['type']) -}}
            {%- endif -%}
        {%- else -%}
            {%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
"""
IMAGE_MACRO = """\
{%- macro user_content(content) -%}
    {%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}
        {%- if part['type'] == 'image' -%}
            {{- '<|image_start|>' + '<|image|>' * NUM_IMAGE_TOKENS + '<|image_end|>' -}}
        {%- else -%}
            {{- text_of([part]) -}}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro -%}
"""


def build_chat_template(num_image_tokens: int) -> str:
    """Return the template of a model that takes an image for so many tokens; 0 is a model that reads text only."""
    if not num_image_tokens:
        return CHAT_TEMPLATE
    macro = IMAGE_MACRO.replace("NUM_IMAGE_TOKENS", str(num_image_tokens))
    return CHAT_TEMPLATE.replace("{{- bos_token -}}", macro + "{{- bos_token -}}").replace(
        "text_of(content) + '<|user_end|>'", "user_content(content) + '<|user_end|>'"
    )


class ConversationError(ValueError):
    """A conversation that nanochat's format cannot hold; `place` (a file and line, a row) goes in front of the message."""

    def __init__(self, problem: str, place: str = ""):
        super().__init__(f"{place}: {problem}" if place else problem)


def check_conversation(conversation: dict, place: str = "") -> list[dict]:
    """Return the messages of a conversation, or raise with the first thing that is wrong with it.

    Roles alternate user, assistant, after an optional system message. User and system content is a string; assistant content is a string or
    a list of parts `{"type": "text" | "python" | "python_output", "text": str}`. A user message with images is a list of parts too,
    `{"type": "image", "url": path or data URL}` beside text. Other keys are ignored. Messages and parts count from 0.

    >>> check_conversation({"messages": [{"role": "user", "content": "hi"}]})
    [{'role': 'user', 'content': 'hi'}]
    """
    if not isinstance(conversation, dict) or "messages" not in conversation:
        raise ConversationError(f"expected {{'messages': [...]}}, got {describe(conversation)}", place)
    messages = conversation["messages"]
    if not isinstance(messages, list):
        raise ConversationError(f"messages is {describe(messages)}, expected a list", place)
    for index, (message, role) in enumerate(zip(messages, _expected_roles(messages), strict=True)):
        if isinstance(message, dict) and message.get("role") == role and isinstance(message.get("content"), str):
            continue
        problem = _message_problem(message, role)
        if problem:
            raise ConversationError(f"message {index} {problem}", place)
    if not messages or messages[-1]["role"] == "system":
        raise ConversationError("there is no user message, expected at least one. Add one or remove the conversation.", place)
    return messages


def join_text_parts(message: dict) -> dict:
    """Turn content that is a list of text parts, as OpenAI's clients send it, into the string that user and system messages need.

    >>> join_text_parts({"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "!"}]})
    {'role': 'user', 'content': 'Hello!'}
    """
    content = message.get("content") if isinstance(message, dict) and message.get("role") != "assistant" else None
    if not isinstance(content, list) or has_image(content):
        return message
    problems = (f"part {index} {problem}" for index, part in enumerate(content) if (problem := _part_problem(part, ("text",))))
    problem = next(problems, "")
    if problem:
        raise ConversationError(f"a {message['role']} message: {problem}")
    return message | {"content": "".join(part["text"] for part in content)}


def check_prompt(conversation: dict, place: str = "") -> list[dict]:
    """Return the checked messages before the last one, which has to be the assistant's; nanochat does not look at what it says."""
    is_conversation = isinstance(conversation, dict) and isinstance(conversation.get("messages"), list) and conversation["messages"]
    if not is_conversation:
        return check_conversation(conversation, place)  # raises
    *prompt, last = conversation["messages"]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        role = last.get("role") if isinstance(last, dict) else None
        raise ConversationError(f"message {len(prompt)} has role {role!r}, expected the last message to be the assistant's", place)
    return check_conversation({"messages": prompt}, place)


def _expected_roles(messages: list) -> list[str]:
    has_system = bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") == "system"
    roles = ["user", "assistant"] * (len(messages) // 2 + 1)
    return (["system", *roles] if has_system else roles)[: len(messages)]


def _message_problem(message: dict, expected_role: str) -> str:
    if not isinstance(message, dict):
        return f"is {describe(message)}, expected a dict with role and content"
    role, content = message.get("role"), message.get("content")
    if role != expected_role:
        return f"has role {role!r}, expected {expected_role!r}. {ROLE_HINTS.get(str(role), 'Roles alternate user, assistant.')}"
    if isinstance(content, str):
        return ""
    if role != "assistant" and not (role == "user" and has_image(content)):
        hint = " Images belong in user messages." if has_image(content) else ""
        return f"({role}) has content of {describe(content)}, expected a string{'.' if hint else ''}{hint}"
    if not isinstance(content, list):
        return f"(assistant) has content of {describe(content)}, expected a string or a list of parts"
    known = ASSISTANT_PARTS if role == "assistant" else USER_PARTS
    problems = (f"part {index} {problem}" for index, part in enumerate(content) if (problem := _part_problem(part, known)))
    return next(problems, "")


def _part_problem(part: dict, known: tuple[str, ...]) -> str:
    if not isinstance(part, dict):
        return f"is {describe(part)}, expected a dict with type and text"
    if part.get("type") not in known:
        hint = ". Images belong in user messages." if part.get("type") == "image" else ""
        return f"has type {part.get('type')!r}, expected {'one of ' * (len(known) > 1)}{', '.join(known)}{hint}"
    if part["type"] == "image":
        return _image_problem(part.get("url"))
    if not isinstance(part.get("text"), str):
        return f"has text of {describe(part.get('text'))}, expected a string"
    return ""


def _image_problem(url: object) -> str:
    if not isinstance(url, str) or not url:
        return f"is an image with url of {describe(url or None)}, expected a path or a data URL"
    is_data = url.startswith("data:")
    if is_data and not (url.startswith("data:image/") and ";base64," in url):
        return f"is an image with url {url[:40]!r}, expected data:image/...;base64,... or a path"
    if "://" in url and not is_data:
        return (
            f"is an image at {url}, which would be fetched again in every epoch and may change or vanish meanwhile. "
            "Download it, and give its path or a data URL."
        )
    return ""


def has_image(content: object) -> bool:
    """Tell whether content is a list of parts, some of them images."""
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == "image" for part in content)


def image_urls(messages: list[dict]) -> list[str]:
    """List the images of checked messages in their order.

    >>> image_urls([{"role": "user", "content": [{"type": "image", "url": "cat.png"}, {"type": "text", "text": "What is it?"}]}])
    ['cat.png']
    """
    return [part["url"] for message in messages if has_image(message["content"]) for part in message["content"] if part["type"] == "image"]


def describe(value: object) -> str:
    return "None (or missing)" if value is None else f"type {type(value).__name__}"


def conversation_spans(messages: list[dict]) -> list[tuple[str, str, str, int]]:
    """List what checked messages render to: opening marker, text, closing marker, and 1 where the model is trained on all three.

    Texts stay apart because nanochat encodes each on its own: joining two neighbouring parts would give other tokens.

    >>> conversation_spans([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])[1:]
    [('<|user_start|>', 'hi', '<|user_end|>', 0), ('<|assistant_start|>', '', '', 0), ('', 'yo', '<|assistant_end|>', 1)]
    """
    spans = [("<|bos|>", "", "", 0)]
    system = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system = content + "\n\n"
        elif role == "user":
            spans += [("<|user_start|>", system + content, "<|user_end|>", 0)] if isinstance(content, str) else _user_spans(system, content)
            system = ""
        else:
            spans.append(("<|assistant_start|>", "", "", 0))
            if isinstance(content, str):
                spans.append(("", content, "<|assistant_end|>", 1))
            else:
                spans += map(_part_span, content)
                spans.append(("", "", "<|assistant_end|>", 1))
    return spans


def _user_spans(text: str, parts: list[dict]) -> list[tuple[str, str, str, int]]:
    """List the spans of a user message, the system's text in front; what stands for an image goes with its opening marker."""
    spans, opening = [], "<|user_start|>"
    for part in parts:
        if part["type"] == "text":
            text += part["text"]
        else:
            spans += [(opening, text, "", 0), ("<|image_start|>", "", "<|image_end|>", 0)]
            opening = text = ""
    return [*spans, (opening, text, "<|user_end|>", 0)]


def _part_span(part: dict) -> tuple[str, str, str, int]:
    opening, closing, trained = PARTS[part["type"]]
    return opening, part["text"], closing, trained
