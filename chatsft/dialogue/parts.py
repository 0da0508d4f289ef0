"""An answer's ids as the parts people know: text, tool calls and their results."""

from collections.abc import Sequence

from chatsft.generation.tool_state import ControlTokens
from chatsft.model.tokenization_gpt import GPTTokenizer


def answer_parts(ids: Sequence[int], tokenizer: GPTTokenizer) -> list[dict]:
    """Split an answer, finished or not, into parts as a conversation has them; the inverse of rendering one.

    A character whose last tokens are still to come is left out.
    """
    control = ControlTokens.of(tokenizer)
    opens = {control.python_start: "python", control.output_start: "python_output"}
    closes = {control.python_end, control.output_end, *control.terminal}
    parts: list[tuple[str, list[int]]] = [("text", [])]
    for token in ids:
        if token in opens:
            parts.append((opens[token], []))
        elif token in closes:
            parts.append(("text", []))
        else:
            parts[-1][1].append(token)
    texts = [{"type": kind, "text": tokenizer.decode(tokens)} for kind, tokens in parts]
    texts[-1]["text"] = texts[-1]["text"].rstrip("\ufffd")
    return [part for part in texts if part["text"] or part["type"] != "text"]
