"""The tokenizer that the recorded generations were made with."""

from pathlib import Path

import pytest

from chatsft.model.nanochat_tokenizer import load_nanochat_tokenizer
from chatsft.model.tokenization_gpt import GPTTokenizer

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "engine" / "tokenizer"


@pytest.fixture(scope="session")
def tokenizer() -> GPTTokenizer:
    return load_nanochat_tokenizer(TOKENIZER)
