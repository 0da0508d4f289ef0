from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatsft.optim.orthogonalization import orthogonalize_2025, orthogonalize_2026

RECORDED_2025 = load_file(Path(__file__).parents[1] / "fixtures/optim/muon_2025.safetensors")
SHAPES_2025 = sorted({key.split(".")[0] for key in RECORDED_2025} - {"adamw"})


@pytest.mark.parametrize("shape", SHAPES_2025)
def test_2025_orthogonalization_equals_nanochat(shape):
    gradient = RECORDED_2025[f"{shape}.grad0"]
    expected = RECORDED_2025[f"{shape}.fp32.ns_of_grad0"]
    error = orthogonalize_2025(gradient[None], torch.float32)[0] - expected
    assert error.abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("orthogonalize", "low", "high"), [(orthogonalize_2025, 0.5, 1.3), (orthogonalize_2026, 0.8, 1.2)])
@pytest.mark.parametrize("shape", [(2, 16, 40), (2, 40, 16)])
def test_orthogonalization_brings_the_singular_values_near_one(orthogonalize, low, high, shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, torch.float32))
    assert low < values.min() <= values.max() < high


@pytest.mark.parametrize("orthogonalize", [orthogonalize_2025, orthogonalize_2026])
def test_orthogonalization_compiles_into_one_graph(orthogonalize):
    compiled = torch.compile(orthogonalize, backend="aot_eager", fullgraph=True, dynamic=False)
    matrices = torch.randn((2, 12, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(matrices, torch.float32), orthogonalize(matrices, torch.float32), rtol=1e-5, atol=1e-6)
