"""nanochat's tokenizer and chat format as a transformers tokenizer."""

import pickle
import re
from array import array
from functools import cached_property

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from .conversation import (
    IMAGE_TOKEN,
    IMAGE_TOKENS,
    SPECIAL_TOKENS,
    ConversationError,
    build_chat_template,
    check_conversation,
    check_prompt,
    conversation_spans,
    describe,
    join_text_parts,
)

__all__ = ["ConversationError", "GPTTokenizer", "check_conversation"]

NANOCHAT_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
ASCII_WORDS = re.compile(  # the same for text that is all ASCII
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\nA-Za-z0-9]?+[A-Za-z]+|[0-9]{1,2}| ?[^\sA-Za-z0-9]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+", re.ASCII
)
WORD_STARTS = re.compile(r"(?<=\S)(?= )")
BYTE_CHARACTERS = {byte: 256 + byte for byte in range(33)} | {127: 289}  # how byte-level vocabularies spell ASCII that does not print


def byte_level_split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Split text into words by a regular expression and spell each word in byte characters, as tiktoken does."""
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class WordIds(dict):
    """Ids of the words seen so far, as int32 bytes: most words of a text are old, and joining bytes is the fastest way to put ids together.

    ASCII text is split by `ASCII_WORDS`. Other text is cut before each space that follows a non-space, which no word of
    `NANOCHAT_PATTERN` reaches across, and each cut is kept like a word. Under any other pattern a whole text is one word.
    """

    max_words, max_word_length = 2**18, 64  # about 50 MB

    def __init__(self, backend: Tokenizer):
        super().__init__()
        self.backend, self.tokenize = backend, backend.model.tokenize
        self.plain = Tokenizer(backend.model)  # knows no special tokens
        self.plain.pre_tokenizer = backend.pre_tokenizer
        # by pickle: as strings, pre-tokenizers leave out the end of a long pattern
        self.is_nanochat_split = pickle.dumps(backend.pre_tokenizer) == pickle.dumps(byte_level_split(NANOCHAT_PATTERN))

    def __reduce__(self):
        return WordIds, (self.backend,)

    def encode(self, text: str) -> bytes:
        """Encode text in which special tokens are only text."""
        if not self.is_nanochat_split:
            return self._encode_any(text)
        if text.isascii():
            return b"".join(map(self.__getitem__, ASCII_WORDS.findall(text)))
        return b"".join(map(self._encode_cut, WORD_STARTS.split(text)))

    def __missing__(self, word: str) -> bytes:
        """Encode and keep a single ASCII word."""
        spelled = word.replace(" ", "Ġ") if word.isprintable() else word.translate(BYTE_CHARACTERS)
        ids = self[word] = array("i", [token.id for token in self.tokenize(spelled)]).tobytes()
        if len(word) > self.max_word_length or len(self) > self.max_words:
            self._forget(word)
        return ids

    def _encode_cut(self, cut: str) -> bytes:
        ids = self.get(cut)
        if ids is not None:
            return ids
        if cut.isascii():
            return b"".join(map(self.__getitem__, ASCII_WORDS.findall(cut)))
        ids = self[cut] = self._encode_any(cut)
        if len(cut) > self.max_word_length or len(self) > self.max_words:
            self._forget(cut)
        return ids

    def _encode_any(self, text: str) -> bytes:
        """Encode by the backend, after joining surrogate pairs and replacing lone ones as tiktoken does."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return array("i", self.plain.encode_batch_fast([text], add_special_tokens=False)[0].ids).tobytes()

    def _forget(self, word: str) -> None:
        """Drop a word that is too long to come again, or all of them where there are too many."""
        if len(word) > self.max_word_length:
            del self[word]
        else:
            self.clear()


class GPTTokenizer(PreTrainedTokenizerFast):
    """Encode text as nanochat's tokenizer does and render conversations to ids and masks.

    `tokenizer(text)` is transformers' own call, which turns special-token text into special tokens. The methods below never do that.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012, transformers' own spelling

    @cached_property
    def _word_ids(self) -> WordIds:
        return WordIds(self.backend_tokenizer)

    @cached_property
    def _markers(self) -> dict[str, bytes]:
        ids = {token: self.backend_tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        missing = [token for token, token_id in ids.items() if token_id is None]
        if missing:
            raise ValueError(f"the vocabulary has no {', '.join(missing)}, expected a tokenizer made from nanochat's tokenizer.pkl.")
        markers = {"": b""} | {token: array("i", [token_id]).tobytes() for token, token_id in ids.items()}
        if self.num_image_tokens:
            start, image, end = map(self.backend_tokenizer.token_to_id, IMAGE_TOKENS)
            markers["<|image_start|>"] = array("i", [start, *[image] * self.num_image_tokens]).tobytes()
            markers["<|image_end|>"] = array("i", [end]).tobytes()
        return markers

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for what an image shows; 0 where the model reads text only."""
        return self.init_kwargs.get("num_image_tokens", 0)

    def add_image_tokens(self, num_image_tokens: int) -> None:
        """Learn to render images, each as `<|image_start|>`, so many `<|image|>` and `<|image_end|>`; their text stays text."""
        self.add_tokens([AddedToken(token, normalized=False, special=True) for token in IMAGE_TOKENS], special_tokens=True)
        self.init_kwargs["num_image_tokens"] = num_image_tokens
        self.chat_template = build_chat_template(num_image_tokens)
        vars(self).pop("_markers", None)

    def whole_images(self, ids: list[int], start: int, stop: int) -> slice:
        """Return the cut ids[start:stop], made smaller where it would go through an image: the whole image is left out then."""
        if self.num_image_tokens:
            inside = set(self.convert_tokens_to_ids(IMAGE_TOKENS[1:]))
            while stop < len(ids) and ids[stop] in inside:
                stop -= 1
            while start < len(ids) and ids[start] in inside:
                start += 1
        return slice(start, stop)

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode text without special tokens: their text stays text, and nothing is put in front or behind."""
        if not isinstance(text, str):
            raise ValueError(f"expected text to encode, got {describe(text)}")
        return _to_list(self._word_ids.encode(text))

    def encode_special(self, text: str) -> int:
        """Return the id of a special token, or of any other text that is one token."""
        ids = _to_list(self._markers[text]) if text in SPECIAL_TOKENS else self.encode_ordinary(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens, expected one. The special tokens are {', '.join(SPECIAL_TOKENS)}")
        return ids[0]

    def get_bos_token_id(self) -> int:
        """Return the id of `<|bos|>`."""
        return self.encode_special("<|bos|>")

    def render_conversation(self, conversation: dict, max_tokens: int | None = 2048) -> tuple[list[int], list[int]]:
        """Render a conversation to ids and a mask that is 1 where the model is trained, both cut to the first `max_tokens`.

        Trained: assistant text, python with its markers, `<|assistant_end|>`. Not trained: everything else, tool output included.
        """
        return self._render(check_conversation(conversation), max_tokens)

    def render_conversations(self, conversations: list[dict], max_tokens: int | None = 2048) -> dict[str, list[list[int]]]:
        """Render many conversations into the columns `input_ids` and `assistant_masks`."""
        rendered = [self.render_conversation(conversation, max_tokens) for conversation in conversations]
        return {"input_ids": [ids for ids, _ in rendered], "assistant_masks": [mask for _, mask in rendered]}

    def _render(self, messages: list[dict], max_tokens: int | None) -> tuple[list[int], list[int]]:
        markers, encode = self._markers, self._word_ids.encode
        ids, mask = [], []
        for opening, text, closing, trained in conversation_spans(messages):
            if opening not in markers:
                raise ConversationError(
                    "there is an image, but the model reads text only. Set vision_model in the recipe to add an encoder, or remove it."
                )
            span = markers[opening] + encode(text) + markers[closing]
            ids.append(span)
            mask.append((b"\1" if trained else b"\0") * (len(span) // 4))
        if max_tokens is not None and self.num_image_tokens:
            max_tokens = self.whole_images(_to_list(b"".join(ids)), 0, max_tokens).stop
        cut = None if max_tokens is None else 4 * max_tokens
        return _to_list(b"".join(ids)[:cut]), list(b"".join(mask)[:max_tokens])

    def render_for_completion(self, conversation: dict) -> list[int]:
        """Render a conversation up to where its last assistant message begins: the prompt that asks for that message."""
        ids, _ = self._render(check_prompt(conversation), max_tokens=2048)
        return [*ids, self.encode_special("<|assistant_start|>")]

    def visualize_tokenization(self, ids: list[int], mask: list[int], with_token_id: bool = False) -> str:
        """Color tokens for a terminal: green where the model is trained, red elsewhere, with gray ids if asked.

        What stands for an image is one token here, with its number.
        """
        green, red, gray, reset = "\033[92m", "\033[91m", "\033[90m", "\033[0m"
        tokens, image_id, count = [], self.get_added_vocab().get(IMAGE_TOKEN), 0
        for place, (token_id, trained) in enumerate(zip(ids, mask, strict=True), 1):
            count += 1
            if token_id == image_id and ids[place : place + 1] == [image_id]:
                continue
            number = f"x{count}" if token_id == image_id else ""
            tokens.append(f"{green if trained else red}{self.decode([token_id])}{number}{reset}")
            if with_token_id:
                tokens[-1] += f"{gray}({token_id}){reset}"
            count = 0
        return "|".join(tokens)

    def apply_chat_template(
        self,
        conversation: list,
        tools: list | None = None,
        documents: list | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **kwargs,
    ) -> str | list | BatchEncoding:
        """Do what transformers documents, with ids from `render_conversation`; only text, or another template, goes through Jinja.

        nanochat's format has no place for tools, documents and template variables, so they change nothing.
        """
        template = chat_template or self.chat_template
        if not tokenize or template not in (None, build_chat_template(self.num_image_tokens)):
            return super().apply_chat_template(
                conversation, tools, documents, chat_template, add_generation_prompt, continue_final_message, tokenize, **kwargs
            )
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "add_generation_prompt opens a new assistant message, continue_final_message goes on with the last: set one of them"
            )
        is_batch = bool(conversation) and not isinstance(conversation[0], dict)
        chats = conversation if is_batch else [conversation]
        rows = []
        for index, chat in enumerate(chats):
            place = f"conversation {index}" if is_batch else ""
            messages = check_conversation({"messages": list(map(join_text_parts, chat))}, place)
            rows.append(self._render_chat(messages, add_generation_prompt, bool(continue_final_message)))
        return self._encode_chats(rows, is_batch, **kwargs)

    def _render_chat(self, messages: list[dict], is_prompt: bool, is_open: bool) -> tuple[list[int], list[int]]:
        ids, mask = self._render(messages, max_tokens=None)
        if is_open:  # without the end marker
            return ids[:-1], mask[:-1]
        return ([*ids, self.encode_special("<|assistant_start|>")], [*mask, 0]) if is_prompt else (ids, mask)

    def _encode_chats(
        self,
        rows: list[tuple[list[int], list[int]]],
        is_batch: bool,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict | None = None,
        **template_variables,
    ) -> list | BatchEncoding:
        if truncation:
            limit = self.model_max_length if max_length is None else max_length
            starts = [0 if self.truncation_side == "right" else max(len(ids) - limit, 0) for ids, _ in rows]
            cuts = [self.whole_images(ids, start, start + limit) for (ids, _), start in zip(rows, starts, strict=True)]
            rows = [(ids[cut], mask[cut]) for (ids, mask), cut in zip(rows, cuts, strict=True)]
        encoding = self.pad({"input_ids": [ids for ids, _ in rows]}, padding=padding, max_length=max_length, **(tokenizer_kwargs or {}))
        if return_assistant_tokens_mask:
            side = (tokenizer_kwargs or {}).get("padding_side") or self.padding_side
            encoding["assistant_masks"] = [
                _pad_mask(mask, len(ids), side) for (_, mask), ids in zip(rows, encoding["input_ids"], strict=True)
            ]
        if not is_batch and return_tensors is None:
            encoding = BatchEncoding({name: column[0] for name, column in encoding.items()})
        encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]


def _pad_mask(mask: list[int], length: int, side: str) -> list[int]:
    padding = [0] * (length - len(mask))
    return mask + padding if side == "right" else padding + mask


def _to_list(ids: bytes) -> list[int]:
    return memoryview(ids).cast("i").tolist()
