"""Comparisons against recorded nanochat values."""

import gzip
import json
from pathlib import Path

import torch

FIXTURES = Path(__file__).parent.parent / "fixtures"


def load_json(path: Path):
    return json.loads(gzip.open(path).read() if path.suffix == ".gz" else path.read_text())


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Require max |difference| <= tolerance x max |expected|."""
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= tolerance * expected.abs().max().item(), f"max difference {difference}, max reference {expected.abs().max()}"


def assert_same_logits(logits: torch.Tensor, outputs: dict[str, torch.Tensor], prefix: str) -> None:
    """Compare logits (batch, length, vocabulary) with the statistics recorded under a prefix."""
    top_ids = outputs[f"{prefix}.top_ids"].long()
    assert_close(logits.gather(-1, top_ids), outputs[f"{prefix}.top_values"])
    assert_close(logits[:, outputs[f"{prefix}.full_positions"].long()], outputs[f"{prefix}.full_logits"])
    assert_close(logits.logsumexp(-1), outputs[f"{prefix}.logsumexp"])
    assert_close(logits.std(-1), outputs[f"{prefix}.std"], 1e-4)


def shift_labels(targets: torch.Tensor) -> torch.Tensor:
    """Turn nanochat's targets (-1 = ignored) into labels aligned with the logits."""
    return targets.long().masked_fill(targets == -1, -100)
