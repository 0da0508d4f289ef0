"""The speaker of these tests."""

import pytest

from chatsft.dialogue.speaker import Speaker
from tests.dialogue.models import load_speaker


@pytest.fixture(scope="session")
def speaker() -> Speaker:
    return load_speaker()


@pytest.fixture(scope="session")
def tokenizer(speaker):
    return speaker.tokenizer
