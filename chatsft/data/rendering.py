"""The render stage: column `messages` becomes `input_ids` and `assistant_masks`, as a cached `datasets.map`."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from chatsft import __version__
from chatsft.data.template_rendering import template_renderer
from chatsft.model.conversation import image_urls
from chatsft.model.images import read_image
from chatsft.model.tokenization_gpt import ConversationError, GPTTokenizer
from chatsft.tasks.bad_rows import handle_bad_rows

logger = logging.getLogger(__name__)

RENDERED = Features(
    {"input_ids": List(Value("int32")), "assistant_masks": List(Value("int8")), "is_truncated": Value("bool"), "problem": Value("string")}
)
IMAGES = Features({"images": List(Value("string"))})


def render_dataset(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int | None = None, on_bad_row: str = "error"
) -> Dataset:
    """Render column `messages` to `input_ids` and `assistant_masks` (1 = trained), cut to the first max_length tokens.

    A GPTTokenizer renders as nanochat does, any other tokenizer through its chat template; raw text is trained whole. Other columns stay.
    With a tokenizer that has image tokens there is a column `images` too, their paths and data URLs in order; no cut goes through an image.
    A conversation that cannot be rendered is named by its `origin`, or its `source` and row; with `on_bad_row` "skip" it is left out. The
    cache is named after what the result depends on, so that every process finds it: tokenizer, max_length, rows and package version.
    """
    kept = Features({name: feature for name, feature in dataset.features.items() if name != "messages"})
    rendered = dataset.map(
        render_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=["messages"],
        features=Features({**kept, **RENDERED, **(IMAGES if has_image_tokens(tokenizer) else {})}),
        num_proc=num_proc,
        new_fingerprint=make_fingerprint(dataset, tokenizer, max_length),
        desc="Rendering",
    )
    problems = [problem for problem in rendered["problem"] if problem]
    handle_bad_rows("the mixture", problems, len(rendered), on_bad_row)
    if problems:
        rendered = rendered.select([index for index, problem in enumerate(rendered["problem"]) if not problem])
    num_truncated = int(np.count_nonzero(rendered.with_format("numpy")["is_truncated"][:]))
    if num_truncated:
        logger.warning("%d of %d conversations were longer than max_length=%d and lost their end", num_truncated, len(rendered), max_length)
    return rendered.remove_columns(["is_truncated", "problem"])


def make_fingerprint(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Name the cache of a rendered dataset after the content that it depends on."""
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    content = [hashlib.sha256(vocabulary.encode()).hexdigest(), tokenizer.chat_template, tokenizer.special_tokens_map]
    key = json.dumps([__version__, "render", content, max_length, dataset._fingerprint], default=str)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def render_batch(batch: dict[str, list], indices: Sequence[int], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Render the rows of a batch; one that cannot be rendered is empty and has a problem."""
    render, with_images = conversation_renderer(tokenizer), has_image_tokens(tokenizer)
    columns = {name: [] for name in (*RENDERED, *(IMAGES if with_images else ()))}
    for row, messages in enumerate(batch["messages"]):
        ids, mask, urls, problem = [], [], [], None
        try:
            ids, mask = render({"messages": messages})
            urls = image_urls(messages) if with_images else []
            for url in urls:
                read_image(url)
        except ConversationError as error:
            ids, mask, urls, problem = [], [], [], f"{name_place(batch, row, indices[row])}: {error}"
        kept = first_tokens(ids, tokenizer, max_length)
        columns["input_ids"].append(ids[kept])
        columns["assistant_masks"].append(mask[kept])
        columns["is_truncated"].append(len(ids) > max_length)
        columns["problem"].append(problem)
        if with_images:
            columns["images"].append(urls[: ids[kept].count(tokenizer.convert_tokens_to_ids("<|image_end|>"))])
    return columns


def first_tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, max_length: int) -> slice:
    """Return what a conversation keeps of its tokens: no more than max_length, and nothing from an image that this would cut on."""
    return tokenizer.whole_images(ids, 0, max_length) if has_image_tokens(tokenizer) else slice(max_length)


def has_image_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    return isinstance(tokenizer, GPTTokenizer) and tokenizer.num_image_tokens > 0


def conversation_renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[[dict], tuple[list[int], list[int]]]:
    """Return what turns a conversation, or one whose `messages` is a raw text, into ids and a mask (1 = trained), uncut."""
    if isinstance(tokenizer, GPTTokenizer):
        render = partial(tokenizer.render_conversation, max_tokens=None)
    else:
        render = template_renderer(tokenizer)

    def render_row(row: dict) -> tuple[list[int], list[int]]:
        return render_text(row["messages"], tokenizer) if isinstance(row["messages"], str) else render(row)

    return render_row


def render_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Render raw text as in pretraining: all of it is trained, but the first token, which nothing predicts.

    A GPTTokenizer puts `<|bos|>` in front, any other tokenizer what it always does.
    """
    if isinstance(tokenizer, GPTTokenizer):
        ids = [tokenizer.get_bos_token_id(), *tokenizer.encode_ordinary(text)]
    else:
        ids = tokenizer(text)["input_ids"]
    return ids, [int(index > 0) for index in range(len(ids))]


def name_place(batch: dict[str, list], row: int, index: int) -> str:
    """Say where a conversation came from.

    >>> name_place({"source": ["chat.jsonl"]}, 0, 17)
    'chat.jsonl, row 17'
    """
    if "origin" in batch:
        return batch["origin"][row]
    return f"{batch['source'][row]}, row {index}" if "source" in batch else f"row {index}"


def supervision_statistics(assistant_masks: Iterable[Sequence[int]]) -> dict[str, int | float]:
    """Count how much of rendered conversations is trained on.

    >>> supervision_statistics([[0, 1, 1], [0, 0]])
    {'conversations': 2, 'tokens': 5, 'supervised_tokens': 2, 'supervised_share': 0.4, 'unsupervised_conversations': 1}
    """
    counts = [(len(mask), int(np.count_nonzero(mask))) for mask in assistant_masks]
    tokens, supervised = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return {
        "conversations": len(counts),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "supervised_share": supervised / tokens if tokens else 0.0,
        "unsupervised_conversations": sum(not trained for _, trained in counts),
    }
