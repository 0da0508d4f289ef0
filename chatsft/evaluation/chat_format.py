"""How a model is asked for an answer and what ends one: nanochat's chat format, or whatever a chat template makes of it."""

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatsft.data.template_rendering import PROBE, encode, join_parts, special_ids, turn_end
from chatsft.model.tokenization_gpt import GPTTokenizer


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    """Return the ids that ask for an answer to messages: what `render_for_completion` gives, at any length."""
    if isinstance(tokenizer, GPTTokenizer):
        ids, _ = tokenizer.render_conversation({"messages": messages}, max_tokens=None)
        return [*ids, tokenizer.encode_special("<|assistant_start|>")]
    messages = [{**message, "content": join_parts(message["content"])} for message in messages]
    return encode(messages, tokenizer, add_generation_prompt=True)


def answer_ends(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int] | None:
    """Return the tokens that end an answer: of the template's turns and of the model's own settings; None for nanochat's, with its tool."""
    if isinstance(tokenizer, GPTTokenizer):
        return None
    ids, special = encode(PROBE[:2], tokenizer), special_ids(tokenizer)
    known = model.generation_config.eos_token_id
    ends = {ids[turn_end(ids, special, tokenizer) - 1]} & special
    ends |= {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    return sorted(ends - {None})


def check_askable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot ask.

    Raises:
        ValueError: where there is no chat template, or one that refuses a plain question.
    """
    if isinstance(tokenizer, GPTTokenizer):
        return
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{tokenizer.name_or_path} has a {type(tokenizer).__name__} without a chat template, so nothing can be asked with it. "
            "Set --tokenizer_path to a tokenizer of the same vocabulary that has one, or score a base model with lm_eval."
        )
    try:
        render_prompt(tokenizer, PROBE[:1])
    except TemplateError as error:
        raise ValueError(f"The chat template of {tokenizer.name_or_path} refuses a plain question: {error}") from error
