"""Read and write the tokenizer.pkl of nanochat without tiktoken and without running what a pickle may ask for."""

import json
import pickle
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .conversation import CHAT_TEMPLATE, SPECIAL_TOKENS
from .tokenization_gpt import GPTTokenizer, byte_level_split


class TokenizerFileError(ValueError):
    """A tokenizer.pkl that is not there, is damaged, or holds something other than nanochat's tokenizer."""


def load_nanochat_tokenizer(folder: str | Path) -> GPTTokenizer:
    """Build the transformers tokenizer equal to the `tokenizer.pkl` in a nanochat tokenizer folder."""
    path = Path(folder) / "tokenizer.pkl"
    if not path.is_file():
        raise TokenizerFileError(f"{path}: no such file. Pass the tokenizer folder of nanochat, the one with tokenizer.pkl in it.")
    return build_tokenizer(read_encoding(path))


def build_tokenizer(
    encoding: dict, tokenizer_class: type[PreTrainedTokenizerFast] = GPTTokenizer, chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Build a transformers tokenizer from what `read_encoding` or `encoding_of` returns."""
    vocab, merges = vocab_and_merges(encoding["mergeable_ranks"])
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = byte_level_split(encoding["pat_str"])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer_class(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|assistant_end|>",
        pad_token="<|assistant_end|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|bos|>", "<|assistant_end|>")],
        chat_template=chat_template,
    )


class _PickledEncoding:
    """Stands in for tiktoken's Encoding, whose pickle is its name, pattern, ranks and special tokens."""

    state = None

    def __setstate__(self, state: object):
        self.state = state


class _EncodingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _PickledEncoding
        raise TokenizerFileError(f"refused to load {module}.{name}. Only tiktoken.core.Encoding and plain data are allowed.")


def read_encoding(path: str | Path) -> dict:
    """Return `pat_str`, `mergeable_ranks` and `special_tokens` of a pickled tiktoken Encoding, checked to be nanochat's."""
    try:
        with open(path, "rb") as file:
            encoding = _EncodingUnpickler(file).load()
    except TokenizerFileError as error:
        raise TokenizerFileError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise TokenizerFileError(f"{path}: not a readable pickle ({type(error).__name__}: {error}). Copy it again.") from error
    state = encoding.state if isinstance(encoding, _PickledEncoding) else encoding
    _check_encoding(state, path)
    return state


def _check_encoding(state: object, path: str | Path):
    fields = {"pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
    if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in fields.items()):
        raise TokenizerFileError(f"{path}: holds {type(state).__name__}, expected a tiktoken Encoding with {', '.join(fields)}.")
    ranks, special_tokens = state["mergeable_ranks"], state["special_tokens"]
    if not all(isinstance(token, bytes) for token in ranks) or sorted(ranks.values(), key=str) != sorted(range(len(ranks)), key=str):
        raise TokenizerFileError(f"{path}: the ranks are not 0 to {len(ranks) - 1}, one for each byte string. The file is damaged.")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise TokenizerFileError(f"{path}: some single bytes have no token. The file is damaged.")
    expected = {token: len(ranks) + index for index, token in enumerate(SPECIAL_TOKENS)}
    if special_tokens != expected:
        raise TokenizerFileError(f"{path}: special tokens are {special_tokens}, expected nanochat's {expected}.")


def vocab_and_merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Turn tiktoken's ranks into a byte-level BPE vocabulary and its merges.

    tiktoken merges any two neighbours whose union is a token, lowest rank first, so every split of a token into two tokens is a merge.

    >>> vocab_and_merges({b"a": 0, b" ": 1, b" a": 2})
    ({'a': 0, 'Ġ': 1, 'Ġa': 2}, [('Ġ', 'a')])
    """
    characters = bytes_to_unicode()
    spelled = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
        halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelled[left], spelled[right]) for left, right in halves]
    return {spelled[token]: rank for token, rank in ranks.items()}, merges


def load_encoding(path: str | Path) -> dict:
    """Read a tokenizer.json back into what tiktoken needs: `name`, `pat_str`, `mergeable_ranks` and `special_tokens`.

    Raises:
        TokenizerFileError: where the file is missing, or no tokenizer made from nanochat's, which alone can go back.
    """
    if not Path(path).is_file():
        raise TokenizerFileError(f"{path}: no such file. A saved tokenizer has one; save the tokenizer beside the model.")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more exact
        raise TokenizerFileError(f"{path}: not a readable tokenizer.json ({error}). Copy it again.") from error
    return encoding_of(backend, path)


def encoding_of(backend: Tokenizer, path: str | Path) -> dict:
    """Do what `load_encoding` does to a tokenizer that is already in memory; `path` is for messages."""
    parts = json.loads(backend.to_str())
    pattern = _nanochat_pattern(parts)
    if pattern is None:
        raise TokenizerFileError(
            f"{path}: not a byte-level BPE as nanochat's tokenizer is, so it has no tokenizer.pkl to go back to. "
            "Use the tokenizer that chatsft.convert to-hf wrote."
        )
    characters = {character: byte for byte, character in bytes_to_unicode().items()}
    spelled = {token: rank for token, rank in parts["model"]["vocab"].items() if token not in SPECIAL_TOKENS}
    if not all(set(token) <= characters.keys() for token in spelled):
        raise TokenizerFileError(f"{path}: some tokens are not spelled in byte characters. Use the tokenizer that chatsft.convert wrote.")
    ranks = {bytes(characters[character] for character in token): rank for token, rank in spelled.items()}
    special_tokens = {token["content"]: token["id"] for token in parts["added_tokens"]}
    encoding = {
        "name": "rustbpe",  # as nanochat names every tokenizer it trains
        "pat_str": pattern,
        "mergeable_ranks": dict(sorted(ranks.items(), key=lambda item: item[1])),
        "special_tokens": dict(sorted(special_tokens.items(), key=lambda item: item[1])),
    }
    _check_encoding(encoding, path)
    _check_merges([spelled.get("".join(pair)) for pair in parts["model"]["merges"]], path)
    return encoding


def _nanochat_pattern(parts: dict) -> str | None:
    """Return the split pattern where the parts of a tokenizer.json are those of nanochat's tokenizer."""
    match parts:
        case {
            "normalizer": None,
            "pre_tokenizer": {
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ]
            },
            "model": {"type": "BPE", "byte_fallback": False},
        }:
            return pattern
    return None


def _check_merges(products: list[int | None], path: str | Path) -> None:
    """Require that merges come in the order of the tokens they make, as tiktoken knows no other order."""
    if None in products or any(first > second for first, second in pairwise(products)):
        raise TokenizerFileError(f"{path}: the merges are not in the order of the ranks, so tiktoken would encode otherwise.")


def save_nanochat_tokenizer(encoding: dict, folder: str | Path, *, counts_raw_bytes: bool) -> None:
    """Write tokenizer.pkl and token_bytes.pt as nanochat's tokenizer training does.

    Args:
        counts_raw_bytes: see `token_bytes`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(pickle_encoding(encoding))
    counts = token_bytes(encoding["mergeable_ranks"], counts_raw_bytes) + [0] * len(encoding["special_tokens"])
    torch.save(torch.tensor(counts, dtype=torch.int32), folder / "token_bytes.pt")


def token_bytes(ranks: dict[bytes, int], counts_raw_bytes: bool) -> list[int]:
    """Count the UTF-8 bytes of each token, for bits per byte.

    nanochat counts raw bytes in 2026. In 2025 it decoded each token first, so every piece of a broken character counts 3, as
    the replacement character does.

    >>> token_bytes({b"a": 0, b"\\xc3": 1}, counts_raw_bytes=True), token_bytes({b"a": 0, b"\\xc3": 1}, counts_raw_bytes=False)
    ([1, 1], [1, 3])
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    return [len(token if counts_raw_bytes else token.decode("utf-8", "replace").encode()) for token in tokens]


def pickle_encoding(encoding: dict) -> bytes:
    """Pickle a tiktoken Encoding without tiktoken.

    pickle writes an object as its class, an empty tuple, its state and BUILD, so the state's own pickle goes between the opcodes
    of the rest. Protocol 3 because later ones wrap the opcodes in frames of known length.
    """
    head = b"\x80\x03" + pickle.GLOBAL + b"tiktoken.core\nEncoding\n" + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    state = {name: encoding[name] for name in ("name", "pat_str", "mergeable_ranks", "special_tokens")}
    return head + pickle.dumps(state, protocol=3)[2:-1] + pickle.BUILD + pickle.STOP
