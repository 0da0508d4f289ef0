"""The tokenizer and its rendering against recordings of nanochat's own."""

import copy
import gzip
import json
import os
import pickle
import re
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import chatsft  # noqa: F401, registers the class
from chatsft.model.conversation import CHAT_TEMPLATE, SPECIAL_TOKENS, check_conversation, conversation_spans
from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from chatsft.model.tokenization_gpt import NANOCHAT_PATTERN, ConversationError, GPTTokenizer, WordIds, byte_level_split

FIXTURES = Path(__file__).parent.parent / "fixtures"
# from nanochat's ids, where the chat template is used as a template: conversations by cause
DIFFERENCES = {"none": 289, "special token spelled in content": 23, "lone surrogates": 2, "texts side by side": 1}
GREETING = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]}
TOOL_CALL = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 6*7?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see. "},
                {"type": "python", "text": "6*7"},
                {"type": "python_output", "text": "42"},
                {"type": "text", "text": "It is 42."},
            ],
        },
    ]
}


def load_lines(name: str) -> list[dict]:
    with gzip.open(FIXTURES / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def tokenizer() -> GPTTokenizer:
    return load_nanochat_tokenizer(FIXTURES / "tokenizer/v1")


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return pickle.loads((FIXTURES / "tokenizer/v1/tokenizer.pkl").read_bytes())


@pytest.fixture(scope="module")
def conversations() -> dict[str, dict]:
    return {line["id"]: line["conversation"] for line in load_lines("render/conversations.jsonl.gz")}


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    return load_lines("render/v1.jsonl.gz")


@pytest.fixture(scope="module")
def rendered(recorded) -> list[dict]:
    """What nanochat renders, without the part text that is a list: nanochat nests ids there, we refuse it."""
    return [record for record in recorded if "exception" not in record and record["id"] != "edge_part_text_list_of_str"]


def test_the_recordings_are_complete(recorded, rendered):
    assert (len(recorded), len(rendered)) == (358, 315)


def test_ids_and_masks_equal_nanochats(tokenizer, conversations, rendered):
    for record in rendered:
        ids, mask = tokenizer.render_conversation(conversations[record["id"]], max_tokens=None)
        kept = record.get("ids_cut_to", len(ids))
        assert ids[:kept] == record["ids"], record["id"]
        assert mask[:kept] == [int(digit) for digit in record["mask"]], record["id"]
        assert (len(ids), sum(mask)) == (record["n"], record["n_mask1"]), record["id"]


@pytest.mark.parametrize("max_tokens", [64, 512, 2048])
def test_truncation_keeps_a_prefix(tokenizer, conversations, rendered, max_tokens):
    for record in rendered:
        cut = record["trunc"][str(max_tokens)]
        ids, mask = tokenizer.render_conversation(conversations[record["id"]], max_tokens)
        assert (len(ids), sum(mask)) == (cut["n"], cut["n_mask1"]), record["id"]
        assert (ids[-4:], mask[-4:]) == (cut["last_ids"], cut["last_mask"]), record["id"]


def test_the_default_length_is_nanochats(tokenizer, conversations, rendered):
    assert [len(tokenizer.render_conversation(conversations[record["id"]])[0]) for record in rendered] == [r["default_n"] for r in rendered]
    assert max(record["n"] for record in rendered) > 2048


def test_the_2026_recordings_are_the_same_lengths(tokenizer, conversations, rendered):
    second = {record["id"]: record for record in load_lines("render/v2.jsonl.gz")}
    for record in rendered:
        newer = second[record["id"]]
        assert newer["ids_equal_v1"] and newer["mask_equal_v1"] and newer["completion_equal_v1"]
        for max_tokens, expected in newer["trunc_n"].items():
            ids, mask = tokenizer.render_conversation(conversations[record["id"]], int(max_tokens))
            assert [len(ids), sum(mask)] == expected, record["id"]


def test_completion_prompts_equal_nanochats(tokenizer, conversations, recorded):
    checked = 0
    for record in recorded:
        if "completion_crc" not in record:
            continue
        ids = tokenizer.render_for_completion(conversations[record["id"]])
        assert len(ids) == record["completion_n"], record["id"]
        assert (ids[:8], ids[-8:]) == (record["completion_head"], record["completion_tail"]), record["id"]
        assert zlib.crc32(json.dumps(ids).encode()) == record["completion_crc"], record["id"]
        checked += 1
    assert checked == 295


def test_what_nanochat_fails_on_is_an_error(tokenizer, conversations, recorded):
    failing = [record["id"] for record in recorded if "exception" in record]
    assert len(failing) == 42
    for name in [*failing, "edge_part_text_list_of_str"]:
        with pytest.raises(ConversationError):
            tokenizer.render_conversation(conversations[name])
    for name in [record["id"] for record in recorded if "completion_exception" in record]:
        with pytest.raises(ConversationError):
            tokenizer.render_for_completion(conversations[name])


def test_rendering_leaves_its_input_alone(tokenizer):
    before = copy.deepcopy(TOOL_CALL)
    tokenizer.render_conversation(TOOL_CALL)
    tokenizer.render_for_completion(TOOL_CALL)
    tokenizer.apply_chat_template(TOOL_CALL["messages"])
    assert before == TOOL_CALL


def test_the_batch_is_the_same_as_one_by_one(tokenizer, conversations, rendered):
    valid = [conversations[record["id"]] for record in rendered]
    batch = tokenizer.render_conversations(valid, 512)
    singles = [tokenizer.render_conversation(conversation, 512) for conversation in valid]
    assert batch == {"input_ids": [ids for ids, _ in singles], "assistant_masks": [mask for _, mask in singles]}


def test_supervised_tokens_are_the_assistants_words_and_the_end(tokenizer):
    ids, mask = tokenizer.render_conversation(TOOL_CALL)
    trained = tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one])
    assert trained == "Let me see. <|python_start|>6*7<|python_end|>It is 42.<|assistant_end|>"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (
            [{"role": "user", "content": "u"}, {"role": "tool", "content": "4"}],
            "message 1 has role 'tool', expected 'assistant'. Put tool output in",
        ),
        ([{"role": "user", "content": None}], "message 0 (user) has content of None"),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": [{"type": "image", "text": ""}]}],
            "message 1 part 0 has type 'image'",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": [{"type": ["a"], "text": ""}]}],
            "message 1 part 0 has type ['a']",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": [{"type": "text", "text": 7}]}],
            "message 1 part 0 has text of type int",
        ),
        ([{"role": ["user"], "content": "u"}], "message 0 has role ['user'], expected 'user'"),
        (["hi"], "message 0 is type str, expected a dict"),
        ([], "there is no user message"),
    ],
)
def test_errors_say_where_and_what(messages, problem):
    with pytest.raises(ConversationError, match=re.escape(f"chat.jsonl:17: {problem}")):
        check_conversation({"messages": messages}, place="chat.jsonl:17")


def test_completion_needs_an_assistant_message_at_the_end(tokenizer):
    with pytest.raises(ConversationError, match="message 0 has role 'user', expected the last message to be the assistant's"):
        tokenizer.render_for_completion({"messages": GREETING["messages"][:1]})


def test_encoding_equals_nanochats(tokenizer):
    for line in load_lines("tokenizer/encode.jsonl.gz"):
        assert tokenizer.encode_ordinary(line["text"]) == line["ids"], line["text"]


def test_decoding_and_special_tokens_equal_nanochats(tokenizer):
    with gzip.open(FIXTURES / "tokenizer/misc.json.gz") as file:
        recorded = json.load(file)
    for line in (line for line in recorded["decode"] if "text" in line):
        assert tokenizer.decode(line["ids"]) == line["text"]
    for text, expected in recorded["encode_special"].items():
        if isinstance(expected, int):
            assert tokenizer.encode_special(text) == expected
        else:
            with pytest.raises(ValueError, match="expected one"):
                tokenizer.encode_special(text)
    assert [tokenizer.encode_ordinary(text) for text in recorded["batch"]["texts"]] == recorded["batch"]["ids"]
    assert tokenizer.get_bos_token_id() == recorded["encode_special"]["<|bos|>"]


@pytest.mark.parametrize("value", [None, 5, b"bytes", ("a",)])
def test_only_text_can_be_encoded(tokenizer, value):
    with pytest.raises(ValueError, match="expected text"):
        tokenizer.encode_ordinary(value)


SPACES = ["", " ", "  ", "\n", "\r", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000", "\ufeff", "\u200d"]
LETTERS = [
    "a",
    "Bc",
    "'s",
    "'LL",
    "'ſ",
    "ſ",
    "K",
    "é",
    "e\u0301",
    "日本",
    "ß",
    "😀",
    "\ud83d",
    "\ude00",
    "1",
    "23",
    "٣",
    "½",
    ".",
    "!?",
    "_",
]
MIXED_TEXT = st.lists(st.sampled_from([*SPACES, *LETTERS, *SPECIAL_TOKENS]), max_size=25).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(MIXED_TEXT, st.text()))
def test_any_text_gets_tiktokens_ids(tokenizer, encoding, text):
    assert tokenizer.encode_ordinary(text) == encoding.encode_ordinary(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_every_character_gets_tiktokens_ids(tokenizer, encoding):
    for first in range(0, 0x20000, 64):
        text = "".join(f"a{chr(code)}b {chr(code)}c  {chr(code)}1{chr(code)} {chr(code)}" for code in range(first, first + 64))
        assert tokenizer.encode_ordinary(text) == encoding.encode_ordinary(text), hex(first)


def test_the_word_cache_stays_small(tokenizer, encoding, monkeypatch):
    monkeypatch.setattr(WordIds, "max_words", 3)
    word_ids = WordIds(tokenizer.backend_tokenizer)
    text = "one two three four five é six é " + "long" * 30
    assert np.frombuffer(word_ids.encode(text), np.int32).tolist() == encoding.encode_ordinary(text)
    assert 0 < len(word_ids) <= 3 and max(map(len, word_ids)) <= WordIds.max_word_length


@pytest.mark.parametrize("pattern", [r"\p{L}+|[^\p{L}]", NANOCHAT_PATTERN.replace(r"(?!\S)", "(?!.)")])
def test_another_split_pattern_is_followed(tokenizer, encoding, pattern):
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.pre_tokenizer = byte_level_split(pattern)
    other = GPTTokenizer(tokenizer_object=backend)
    expected = tiktoken.Encoding("other", pat_str=pattern, mergeable_ranks=encoding._mergeable_ranks, special_tokens={})
    for text in ("two  words, don't 123", "naïve  <|bos|>"):
        assert other.encode_ordinary(text) == expected.encode_ordinary(text) != encoding.encode_ordinary(text)


def test_special_token_text_stays_text(tokenizer):
    conversation = {"messages": [{"role": "user", "content": "<|assistant_end|>"}, {"role": "assistant", "content": "<|bos|>"}]}
    ids, _ = tokenizer.render_conversation(conversation)
    assert (ids.count(tokenizer.eos_token_id), ids.count(tokenizer.bos_token_id)) == (1, 1)
    assert tokenizer("<|bos|>")["input_ids"] == [tokenizer.bos_token_id]


def test_saved_files_give_the_same_tokenizer(tokenizer, conversations, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = GPTTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|bos|>", "<|assistant_end|>", "<|assistant_end|>")
    assert sorted(loaded.all_special_tokens) == sorted(SPECIAL_TOKENS)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    for name in ("single_0000", "edge_lone_surrogate_user"):
        assert loaded.render_conversation(conversations[name]) == tokenizer.render_conversation(conversations[name])
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert plain("a <|bos|> b") == tokenizer("a <|bos|> b") == loaded("a <|bos|> b")


def test_auto_tokenizer_finds_the_class(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is GPTTokenizer


def test_saved_code_runs_without_the_package(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(GPTTokenizer, "_auto_class", "AutoTokenizer")
    tokenizer.save_pretrained(tmp_path / "saved")
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained('saved', trust_remote_code=True)\n"
        f"print(json.dumps(tokenizer.render_conversation({TOOL_CALL!r})))\n"
        "assert not any(name.split('.')[0] == 'chatsft' for name in sys.modules)\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    output = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == list(tokenizer.render_conversation(TOOL_CALL))


def test_copies_and_pickles_render_the_same(tokenizer):
    expected = tokenizer.render_conversation(TOOL_CALL)
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.render_conversation(TOOL_CALL) == expected


def test_a_foreign_vocabulary_is_refused(tokenizer):
    foreign = copy.deepcopy(tokenizer)
    state = json.loads(foreign.backend_tokenizer.to_str())
    state["added_tokens"] = []
    foreign = GPTTokenizer(tokenizer_object=type(foreign.backend_tokenizer).from_str(json.dumps(state)))
    with pytest.raises(ValueError, match=r"no <\|bos\|>, <\|user_start\|>"):
        foreign.render_conversation(GREETING)


def test_visualization_colors_what_is_trained(tokenizer):
    ids = tokenizer.encode_ordinary("hi")
    shown = tokenizer.visualize_tokenization([*ids, tokenizer.eos_token_id], [0] * len(ids) + [1])
    assert re.sub(r"\x1b\[\d+m", "", shown) == "|".join([*map(tokenizer.decode, ids), "<|assistant_end|>"])
    assert shown.startswith("\x1b[91m") and shown.endswith("\x1b[92m<|assistant_end|>\x1b[0m")
    assert f"({tokenizer.eos_token_id})" in tokenizer.visualize_tokenization([tokenizer.eos_token_id], [1], with_token_id=True)


def test_chat_template_ids_are_rendered_ids(tokenizer):
    ids, mask = tokenizer.render_conversation(TOOL_CALL)
    chat = tokenizer.apply_chat_template(TOOL_CALL["messages"], return_assistant_tokens_mask=True)
    assert dict(chat) == {"input_ids": ids, "attention_mask": [1] * len(ids), "assistant_masks": mask}
    assert tokenizer.apply_chat_template(TOOL_CALL["messages"], return_dict=False) == ids


def test_chat_template_prompts(tokenizer):
    ids, _ = tokenizer.render_conversation({"messages": GREETING["messages"][:1]})
    start = tokenizer.encode_special("<|assistant_start|>")
    assert tokenizer.apply_chat_template(GREETING["messages"][:1], add_generation_prompt=True)["input_ids"] == [*ids, start]
    opened = tokenizer.apply_chat_template(GREETING["messages"], continue_final_message=True)["input_ids"]
    assert tokenizer.decode(opened).endswith("<|assistant_start|>hello there")
    with pytest.raises(ValueError, match="set one of them"):
        tokenizer.apply_chat_template(GREETING["messages"], add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_chat_template_batches_are_padded(tokenizer, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    chats = [GREETING["messages"], TOOL_CALL["messages"]]
    (short, short_mask), (long, long_mask) = map(tokenizer.render_conversation, (GREETING, TOOL_CALL))
    chat = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_assistant_tokens_mask=True)
    gap = [0] * (len(long) - len(short))
    pads = [tokenizer.pad_token_id] * len(gap)

    def put(padding: list[int], row: list[int]) -> list[int]:
        return padding + row if side == "left" else row + padding

    assert chat["input_ids"].tolist() == [put(pads, short), long]
    assert chat["attention_mask"].tolist() == [put(gap, [1] * len(short)), [1] * len(long)]
    assert chat["assistant_masks"].tolist() == [put(gap, short_mask), long_mask]


def test_chat_template_truncates_and_pads_to_length(tokenizer):
    ids, _ = tokenizer.render_conversation(GREETING)
    options = {"truncation": True, "max_length": 4, "return_tensors": "np"}
    assert tokenizer.apply_chat_template(GREETING["messages"], **options)["input_ids"].tolist() == [ids[:4]]
    padded = tokenizer.apply_chat_template(GREETING["messages"], padding="max_length", max_length=len(ids) + 2)
    assert padded["attention_mask"] == [1] * len(ids) + [0, 0]


def test_chat_template_errors_name_the_conversation(tokenizer):
    with pytest.raises(ConversationError, match="conversation 1: message 0 has role 'assistant'"):
        tokenizer.apply_chat_template([GREETING["messages"], GREETING["messages"][1:]])


def test_template_text_tokenizes_to_the_same_ids(tokenizer, conversations, rendered):
    """Where no texts stand side by side and none spells a special token, the saved template and transformers' own path agree."""
    forced = CHAT_TEMPLATE + "{# another template, so that transformers' own path runs #}"
    checked = 0
    for record in rendered:
        messages = conversations[record["id"]]["messages"]
        spans = conversation_spans(messages)
        side_by_side = any(not (left[2] or right[0]) and left[1] and right[1] for left, right in pairwise(spans))
        spelled = any(token in text for _, text, _, _ in spans for token in SPECIAL_TOKENS)
        surrogates = any("\ud800" <= character <= "\udfff" for _, text, _, _ in spans for character in text)
        if side_by_side or spelled or surrogates or record["n"] > 2000:
            continue
        ids, mask = tokenizer.render_conversation({"messages": messages})
        chat = tokenizer.apply_chat_template(messages, chat_template=forced, return_assistant_tokens_mask=True)
        assert chat["input_ids"] == ids, record["id"]
        # transformers loses the rest of a last character of several tokens
        if all(closing or not trained or text.isascii() for _, text, closing, trained in spans):
            assert chat["assistant_masks"] == mask, record["id"]
            checked += 1
    assert checked > 150


def test_the_template_renders_every_recorded_conversation_as_nanochat_does_but_for_these(tokenizer, conversations, rendered):
    """All differences between the template, which servers use, and nanochat's ids, by cause."""
    forced = CHAT_TEMPLATE + "{# another template, so that transformers' own path runs #}"
    differences = {"texts side by side": 0, "special token spelled in content": 0, "lone surrogates": 0, "none": 0}
    for record in rendered:
        messages = conversations[record["id"]]["messages"]
        spans = conversation_spans(messages)
        ids, _ = tokenizer.render_conversation({"messages": messages}, max_tokens=None)
        side_by_side = any(not (left[2] or right[0]) and left[1] and right[1] for left, right in pairwise(spans))
        spelled = any(token in text for _, text, _, _ in spans for token in SPECIAL_TOKENS)
        surrogates = any("\ud800" <= character <= "\udfff" for _, text, _, _ in spans for character in text)
        try:
            is_same = tokenizer.apply_chat_template(messages, chat_template=forced)["input_ids"] == ids
        except (UnicodeEncodeError, TypeError):  # no text that can be encoded
            is_same = False
        cause = "special token spelled in content" if spelled else "lone surrogates" if surrogates else "texts side by side"
        assert is_same or spelled or surrogates or side_by_side, record["id"]
        differences["none" if is_same else cause] += 1
    assert differences == DIFFERENCES


@pytest.mark.parametrize("role", ["system", "user"])
def test_text_parts_are_the_same_as_a_string(tokenizer, role):
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]
    rest = [{"role": "user", "content": "x"}] if role == "system" else []
    as_parts, as_string = ([{"role": role, "content": content}, *rest] for content in (parts, "Hello there"))
    for options in ({}, {"tokenize": False}, {"add_generation_prompt": True}):
        assert tokenizer.apply_chat_template(as_parts, **options) == tokenizer.apply_chat_template(as_string, **options)


def test_other_parts_of_a_user_are_refused(tokenizer):
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(ConversationError, match="a user message: part 1 has type 'image_url', expected text"):
        tokenizer.apply_chat_template(messages)
    with pytest.raises(jinja2.TemplateError, match="Only an assistant message can hold a part of type image_url"):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_template_text(tokenizer):
    text = tokenizer.apply_chat_template(TOOL_CALL["messages"], tokenize=False)
    assert text == (
        "<|bos|><|user_start|>Be brief.\n\nWhat is 6*7?<|user_end|><|assistant_start|>Let me see. <|python_start|>6*7<|python_end|>"
        "<|output_start|>42<|output_end|>It is 42.<|assistant_end|>"
    )
    prompt = tokenizer.apply_chat_template(GREETING["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|user_start|>hi<|user_end|><|assistant_start|>"
