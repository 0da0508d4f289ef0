"""Read the tokenizer.pkl of nanochat without tiktoken and without running what a pickle may ask for."""

import pickle
from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from transformers import AddedToken
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
    encoding = read_encoding(path)
    vocab, merges = vocab_and_merges(encoding["mergeable_ranks"])
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = byte_level_split(encoding["pat_str"])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return GPTTokenizer(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|assistant_end|>",
        pad_token="<|assistant_end|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|bos|>", "<|assistant_end|>")],
        chat_template=CHAT_TEMPLATE,
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
