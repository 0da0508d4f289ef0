"""Reading and writing nanochat's tokenizer.pkl: every recorded vocabulary, and files that are not what they should be."""

import base64
import collections
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import TikTokenConverter

from chatsft.model.conversation import SPECIAL_TOKENS
from chatsft.model.nanochat_tokenizer import (
    TokenizerFileError,
    load_encoding,
    load_nanochat_tokenizer,
    pickle_encoding,
    read_encoding,
    save_nanochat_tokenizer,
)

FOLDER = Path(__file__).parent.parent / "fixtures/tokenizer"
TEXTS = ["Hello world, it's 12345 o'clock!", "naïve  café\n\n\tif x:\n        return 日本語", "", "<|bos|>", "emoji 👩‍👩‍👧 \x00\x7f"]


def write(folder: Path, content: bytes) -> Path:
    (folder / "tokenizer.pkl").write_bytes(content)
    return folder


def encoding_with(**changes) -> tiktoken.Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)}
    special_tokens = {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding(
        **{"name": "test", "pat_str": r"\s+|\S+", "mergeable_ranks": ranks, "special_tokens": special_tokens, **changes}
    )


@pytest.mark.parametrize(("name", "size"), [("v1", 4096), ("v2_4090", 4090), ("v1_512", 512), ("v2_500", 500)])
def test_every_vocabulary_encodes_as_tiktoken_does(name, size):
    tokenizer = load_nanochat_tokenizer(FOLDER / name)
    encoding = pickle.loads((FOLDER / name / "tokenizer.pkl").read_bytes())
    assert len(tokenizer) == tokenizer.vocab_size + 9 == size or len(tokenizer) == size
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(size - 9, size))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (size - 9, size - 5, size - 5)
    for text in TEXTS:
        assert tokenizer.encode_ordinary(text) == encoding.encode_ordinary(text)
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == encoding.encode_ordinary(text)
        assert tokenizer(text)["input_ids"] == encoding.encode(text, allowed_special="all")


def test_every_token_decodes_to_its_bytes():
    tokenizer = load_nanochat_tokenizer(FOLDER / "v1")
    encoding = pickle.loads((FOLDER / "v1/tokenizer.pkl").read_bytes())
    assert [tokenizer.decode([token]) for token in range(4096)] == [encoding.decode([token]) for token in range(4096)]


def test_a_vocabulary_of_bytes_loads(tmp_path):
    tokenizer = load_nanochat_tokenizer(write(tmp_path, pickle.dumps(encoding_with())))
    assert tokenizer.encode_ordinary("ab é") == [97, 98, 32, 195, 169]


def test_tiktoken_is_not_needed(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("tiktoken", "tiktoken_ext")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    assert load_nanochat_tokenizer(FOLDER / "v1_512").encode_ordinary("a") == [97]


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("payload", "refused"),
    [
        (lambda marker: Attack(os.system, f"touch {marker}"), "posix.system"),
        (lambda marker: Attack(eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        (lambda marker: Attack(exec, f"open({str(marker)!r}, 'w')"), "builtins.exec"),
        (lambda marker: Attack(getattr, os, "system"), "builtins.getattr"),
        (lambda marker: Attack(subprocess.Popen, ["touch", str(marker)]), "subprocess.Popen"),
        (lambda marker: collections.OrderedDict(a=1), "collections.OrderedDict"),
        (lambda marker: {"pat_str": Attack(os.mkdir, str(marker))}, "posix.mkdir"),
        (lambda marker: Path(marker), "pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_in_the_pickle_is_run(tmp_path, payload, refused, protocol):
    marker = tmp_path / "ran"
    try:
        content = pickle.dumps(payload(marker), protocol)
    except (TypeError, pickle.PicklingError):
        content = b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR."  # modules do not pickle: by hand
    with pytest.raises(TokenizerFileError, match=rf"refused to load .*{'' if refused == 'pathlib' else refused.split('.')[-1]}"):
        load_nanochat_tokenizer(write(tmp_path, content))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["Encoding.__init__", "Encoding.decode", "core"])
def test_nothing_else_of_tiktoken_is_loaded(tmp_path, name):
    content = b"\x80\x04\x8c\x0dtiktoken.core" + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    with pytest.raises(TokenizerFileError, match=r"refused to load tiktoken\.core"):
        load_nanochat_tokenizer(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.pkl: no such file"):
        load_nanochat_tokenizer(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, 2000, -1])
def test_a_cut_file_is_named(tmp_path, size):
    content = (FOLDER / "v1_512/tokenizer.pkl").read_bytes()[:size]
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.pkl: not a readable pickle"):
        load_nanochat_tokenizer(write(tmp_path, content))


@pytest.mark.parametrize(
    "content", [b"not a pickle", b'{"version": "1.0"}', b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04Ptext\n."]
)
def test_a_file_that_is_no_pickle_is_named(tmp_path, content):
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.pkl: not a readable pickle"):
        load_nanochat_tokenizer(write(tmp_path, content))


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], "text", None, tiktoken.Encoding])
def test_another_object_is_named(tmp_path, value):
    with pytest.raises(TokenizerFileError, match="expected a tiktoken Encoding"):
        load_nanochat_tokenizer(write(tmp_path, pickle.dumps(value)))


def test_a_registered_encoding_is_refused(tmp_path):
    """tiktoken pickles its own published encodings as a name only."""
    content = b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81\x8c\x04gpt2b."
    with pytest.raises(TokenizerFileError, match="holds str, expected a tiktoken Encoding"):
        load_nanochat_tokenizer(write(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"special_tokens": {"<|endoftext|>": 256}}, "special tokens are"),
        ({"special_tokens": {token: index for index, token in enumerate(SPECIAL_TOKENS)}}, "special tokens are"),
        ({"mergeable_ranks": {bytes([byte]): byte + 1 for byte in range(256)}}, "the ranks are not 0 to 255"),
        ({"mergeable_ranks": {bytes([byte]): byte for byte in range(255)}}, "some single bytes have no token"),
    ],
)
def test_a_foreign_vocabulary_is_refused(tmp_path, changes, problem):
    with pytest.raises(TokenizerFileError, match=problem):
        load_nanochat_tokenizer(write(tmp_path, pickle.dumps(encoding_with(**changes))))


@pytest.fixture(scope="module", params=["v1", "v2_4090", "v1_512", "v2_500"])
def returned(request, tmp_path_factory) -> tuple[tiktoken.Encoding, tiktoken.Encoding]:
    """Give nanochat's Encoding and what tiktoken loads after the way to tokenizer.json and back."""
    folder = tmp_path_factory.mktemp("tokenizer")
    load_nanochat_tokenizer(FOLDER / request.param).save_pretrained(folder)
    save_nanochat_tokenizer(load_encoding(folder / "tokenizer.json"), folder / "back", counts_raw_bytes=True)
    return tuple(pickle.loads((path / "tokenizer.pkl").read_bytes()) for path in (FOLDER / request.param, folder / "back"))


def test_tiktoken_loads_an_equal_encoding(returned):
    before, after = returned
    assert type(after) is tiktoken.Encoding
    assert after.__getstate__() == before.__getstate__()
    assert list(after._mergeable_ranks) == list(before._mergeable_ranks)
    assert (after.n_vocab, after.max_token_value, after.name) == (before.n_vocab, before.max_token_value, "rustbpe")
    for text in TEXTS:
        assert after.encode_ordinary(text) == before.encode_ordinary(text)
        assert after.encode(text, allowed_special="all") == before.encode(text, allowed_special="all")


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_tiktoken_encodes_any_text_as_before(returned, text):
    before, after = returned
    assert after.encode_ordinary(text) == before.encode_ordinary(text)


def test_writing_needs_no_tiktoken(tmp_path, monkeypatch):
    encoding = read_encoding(FOLDER / "v1_512/tokenizer.pkl")
    for name in [name for name in sys.modules if name.split(".")[0] in ("tiktoken", "tiktoken_ext")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    save_nanochat_tokenizer(encoding, tmp_path, counts_raw_bytes=False)
    assert read_encoding(tmp_path / "tokenizer.pkl") == encoding


@settings(max_examples=30, deadline=None)
@given(name=st.text(), tokens=st.sets(st.binary(min_size=2, max_size=300), max_size=20))
def test_any_vocabulary_pickles(name, tokens):
    ranks = {token: rank for rank, token in enumerate([bytes([byte]) for byte in range(256)] + sorted(tokens))}
    state = {"name": name, "pat_str": r"\s+|\S+", "mergeable_ranks": ranks, "special_tokens": {"<|bos|>": len(ranks)}}
    assert pickle.loads(pickle_encoding(state)).__getstate__() == state


@pytest.mark.parametrize(("name", "counts_raw_bytes"), [("v1", False), ("v2_4090", True)])
def test_token_bytes_are_the_recorded_ones_of_each_generation(tmp_path, name, counts_raw_bytes):
    recorded = torch.load(FOLDER / name / "token_bytes.pt")
    for counts in (True, False):
        save_nanochat_tokenizer(read_encoding(FOLDER / name / "tokenizer.pkl"), tmp_path, counts_raw_bytes=counts)
        written = torch.load(tmp_path / "token_bytes.pt")
        assert written.dtype == recorded.dtype == torch.int32
        assert torch.equal(written, recorded) is (counts is counts_raw_bytes)
        assert written[-9:].tolist() == [0] * 9


def test_a_tokenizer_json_that_transformers_made_comes_back(tmp_path):
    encoding = read_encoding(FOLDER / "v1/tokenizer.pkl")
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in encoding["mergeable_ranks"].items()]
    (tmp_path / "x.tiktoken").write_bytes(b"\n".join(lines))
    converter = TikTokenConverter(str(tmp_path / "x.tiktoken"), encoding["pat_str"], extra_special_tokens=encoding["special_tokens"])
    converter.converted().save(str(tmp_path / "tokenizer.json"))
    assert load_encoding(tmp_path / "tokenizer.json") == encoding


def save_changed(folder: Path, change) -> Path:
    load_nanochat_tokenizer(FOLDER / "v1_512").save_pretrained(folder)
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    change(parts)
    path.write_text(json.dumps(parts))
    return path


def swap_merges(parts: dict) -> None:
    merges = parts["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def rename_token(parts: dict) -> None:
    parts["model"]["vocab"]["\U0001f600"] = parts["model"]["vocab"].pop("ÿ")  # byte 255, which no merge needs


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (swap_merges, "merges are not in the order of the ranks"),
        (rename_token, "not spelled in byte characters"),
        (lambda parts: parts.update(normalizer={"type": "NFC"}), "not a byte-level BPE as nanochat's"),
        (lambda parts: parts.update(pre_tokenizer=None), "not a byte-level BPE as nanochat's"),
        (lambda parts: parts["added_tokens"].pop(), "special tokens are"),
        (lambda parts: parts["model"].update(vocab={"a": 0}, merges=[]), "some single bytes have no token"),
    ],
)
def test_a_tokenizer_json_that_tiktoken_cannot_express_is_refused(tmp_path, change, problem):
    with pytest.raises(TokenizerFileError, match=rf"tokenizer\.json: .*{problem}"):
        load_encoding(save_changed(tmp_path, change))
