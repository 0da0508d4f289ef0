"""Render for tokenizers that are not nanochat's: through their Jinja chat template, with the mask from its markers or from prefixes.

A template knows strings only, so the parts of an assistant message become one text: python and its output stand in it as Markdown code,
and all of it is trained on.
"""

import logging
from collections.abc import Callable

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from chatsft.model.conversation import ConversationError, check_conversation, image_urls

logger = logging.getLogger(__name__)

Rendered = tuple[list[int], list[int]]

FENCES = {"text": "{}", "python": "\n```python\n{}\n```\n", "python_output": "\n```output\n{}\n```\n"}
"""How the parts of an assistant message are written where no tokens of their own exist."""

PROBE = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "Fine."},
]


class ChatTemplateError(ValueError):
    """A chat template that cannot be trained with, with what to do."""


def template_renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[[dict], Rendered]:
    """Return what renders a conversation to ids and a mask (1 = trained), after trying it out.

    The mask comes from the `{% generation %}` markers of the template or of TRL's training version of it, and otherwise from rendering the
    conversation up to each assistant message and up to its end. Either way the token that ends the turn is trained.

    Raises:
        ChatTemplateError: where there is no template, or none that renders or trains anything.
    """
    template = find_template(tokenizer)

    def render(conversation: dict) -> Rendered:
        messages = check_conversation(conversation)
        if image_urls(messages):
            raise ConversationError("there is an image, and images are for nanochat models only. Remove it.")
        messages = [{**message, "content": join_parts(message["content"])} for message in messages]
        try:
            return render_marked(messages, tokenizer, template) if template else render_prefixes(messages, tokenizer)
        except TemplateError as error:
            raise ConversationError(f"the chat template refuses it: {error}") from None

    try:
        ids, mask = render({"messages": PROBE})
    except ConversationError as error:
        raise ChatTemplateError(f"The chat template of {tokenizer.name_or_path} cannot be trained with: {error}") from None
    if not any(mask):
        raise ChatTemplateError(
            f"The chat template of {tokenizer.name_or_path} trains on no token: its {{% generation %}} markers enclose nothing. "
            "Put them around the assistant's text and the token that ends its turn."
        )
    if all(token_id not in special_ids(tokenizer) for token_id, trained in zip(ids, mask, strict=True) if trained):
        logger.warning(
            "The chat template of %s ends the assistant's turn with no token of its own: the model may not learn to stop.",
            tokenizer.name_or_path,
        )
    return render


def find_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the template with markers to render with: the tokenizer's own or TRL's training version; None where neither exists."""
    if tokenizer.chat_template is None:
        raise ChatTemplateError(
            f"{tokenizer.name_or_path} has a {type(tokenizer).__name__} without a chat template, so it has no form for a conversation. "
            "Set tokenizer_path to a tokenizer of the same vocabulary that has one, such as the chat version's."
        )
    own = tokenizer.get_chat_template()
    if has_generation_markers(own):
        if not tokenizer.is_fast:
            raise ChatTemplateError(
                f"{tokenizer.name_or_path} has a {type(tokenizer).__name__}, which cannot say where a token stands in the text. "
                "Markers need a fast tokenizer: remove them from the template, or set tokenizer_path to one with a tokenizer.json."
            )
        return own
    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TemplateError, TypeError):
        return None


def join_parts(content: str | list[dict]) -> str:
    r"""Write the parts of a message as one text.

    >>> join_parts([{"type": "text", "text": "Sum:"}, {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}])
    'Sum:\n```python\n1+1\n```\n\n```output\n2\n```\n'
    """
    if isinstance(content, str):
        return content
    return "".join(FENCES[part["type"]].format(part["text"]) for part in content)


def render_marked(messages: list[dict], tokenizer: PreTrainedTokenizerBase, template: str) -> Rendered:
    """Take the mask from the markers of a template; an end-of-turn token that they leave out is trained too."""
    encoding = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    blank = {token_id for token_id in set(ids) if not tokenizer.decode([token_id]).strip()}
    return ids, with_turn_ends(ids, mask, special_ids(tokenizer), blank)


def with_turn_ends(ids: list[int], mask: list[int], special: set[int], blank: set[int]) -> list[int]:
    """Train the special token right after a trained run that does not end in one, white space (blank) aside.

    >>> with_turn_ends([1, 7, 8, 2, 1, 7, 2, 9, 1], [0, 1, 1, 0, 0, 1, 1, 1, 0], special={1, 2}, blank={9})
    [0, 1, 1, 1, 0, 1, 1, 1, 0]
    """
    extended, is_ended = list(mask), True
    for index, token_id in enumerate(ids):
        if not mask[index]:
            extended[index] = int(not is_ended and token_id in special)
            is_ended = True
        elif token_id not in blank or token_id in special:
            is_ended = token_id in special
    return extended


def render_prefixes(messages: list[dict], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Find each assistant message between two renderings that stop before and after it; both must be a beginning of the whole.

    The prompt is rendered with the opening of the assistant's turn, as for generation. What the template writes after the token that
    ends the turn, as a line break, is not trained.

    Raises:
        ConversationError: where a message is rendered otherwise once others follow, or where a token spans the seam.
    """
    ids, special = encode(messages, tokenizer), special_ids(tokenizer)
    mask = [0] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode(messages[:index], tokenizer, add_generation_prompt=True)
        answered = encode(messages[: index + 1], tokenizer)
        for prefix, place in ((prompt, "begins"), (answered, "ends")):
            if ids[: len(prefix)] != prefix:
                raise ConversationError(seam_problem(ids, prefix, tokenizer, f"where message {index} {place}"))
        end = turn_end(ids[: len(answered)], special, tokenizer)
        mask[len(prompt) : end] = [1] * (end - len(prompt))
    return ids, mask


def turn_end(ids: list[int], special: set[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return where a turn ends: after its last special token if only white space follows that, otherwise at the end of all."""
    end = len(ids)
    while end and ids[end - 1] not in special and not tokenizer.decode([ids[end - 1]]).strip():
        end -= 1
    return end if end and ids[end - 1] in special else len(ids)


def encode(messages: list[dict], tokenizer: PreTrainedTokenizerBase, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def seam_problem(ids: list[int], prefix: list[int], tokenizer: PreTrainedTokenizerBase, place: str) -> str:
    """Say what the whole has where a rendering of its beginning has something else."""
    same = next((index for index, pair in enumerate(zip(ids, prefix, strict=False)) if pair[0] != pair[1]), min(len(ids), len(prefix)))
    whole, alone = (tokenizer.decode(row[same : same + 3]) for row in (ids, prefix))
    return (
        f"{place} the chat template gives {alone!r} alone but {whole!r} in the whole conversation, so no mask fits. Change the text there, "
        "or put {% generation %} markers around the assistant's part of the template."
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
