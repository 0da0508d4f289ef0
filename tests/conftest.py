"""Shared test settings: no test reaches the network."""

import os
from collections.abc import Iterator

import pytest

from tests.two_processes import JoinedProcesses

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def two_processes() -> Iterator[JoinedProcesses]:
    """Two gloo ranks, started once for all tests that need them."""
    with JoinedProcesses() as processes:
        yield processes
