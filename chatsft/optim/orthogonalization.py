"""The matrix arithmetic of Muon, on stacks of equal shape (n, rows, columns), free of host synchronisation.

Each function treats the matrices of a stack independently, so a stack may be cut anywhere.
"""

from torch import Tensor, dtype, float32, where

# Quintic Newton-Schulz coefficients of Muon, https://kellerjordan.github.io/posts/muon/
NEWTON_SCHULZ = [(3.4445, -4.7750, 2.0315)] * 5

# Polar Express, https://arxiv.org/abs/2505.16932: five steps with a safety factor of 2e-2 and a cushion of 2.
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def apply_momentum(gradients: Tensor, momentum: Tensor, share: Tensor, found_inf: Tensor | None = None) -> Tensor:
    """Move the momentum towards the gradients by `share`, in place, and return Nesterov's look ahead, nearly all of it momentum.

    Args:
        gradients: a stack of matrices, as `momentum`.
        share: 1 - the momentum's factor, ().
        found_inf: 1 where this step is to be left out, (); then the momentum stays.
    """
    if found_inf is not None:
        gradients = where(found_inf > 0, momentum, gradients)
    momentum.add_((gradients - momentum) * share)
    return momentum - (momentum - gradients) * share


def orthogonalize_2025(matrices: Tensor, precision: dtype, found_inf: Tensor | None = None) -> Tensor:
    """Move the singular values of each matrix near 1 with five equal Newton-Schulz steps (Muon as published); 0 in a step left out."""
    matrices = matrices.to(precision)
    return _unless(found_inf, _iterate(matrices / (_frobenius(matrices) + 1e-7), NEWTON_SCHULZ).to(float32))


def orthogonalize_2026(matrices: Tensor, precision: dtype, found_inf: Tensor | None = None) -> Tensor:
    """Move the singular values of each matrix near 1 with Polar Express, between two normalisations.

    Before: MuonEq, every row scaled to the mean row norm (https://arxiv.org/abs/2603.28254). After: Muon+, the whole
    matrix scaled to the Frobenius norm of a perfect result, sqrt(min(rows, columns)) (https://arxiv.org/abs/2602.21545). 0 in a step
    left out.
    """
    rows, columns = matrices.shape[-2:]
    matrices = _equalize_rows(matrices.to(float32)).to(precision)
    matrices = _iterate(matrices / (1.01 * _frobenius(matrices) + 1e-6), POLAR_EXPRESS).to(float32)
    return _unless(found_inf, matrices * (min(rows, columns) ** 0.5 / _frobenius(matrices).clamp_min(1e-6)))


def reduce_variance(directions: Tensor, second_momentum: Tensor, beta2: float, found_inf: Tensor | None = None) -> Tensor:
    """Even out the size of each output's update and keep the matrix norm (NorMuon, https://arxiv.org/abs/2510.05491).

    `second_momentum` averages the squares along the shorter side, has `second_momentum_shape`, and is updated in place, but not in a
    step left out.
    """
    rows, columns = directions.shape[-2:]
    squares = directions.square().mean(dim=-1 if rows >= columns else -2, keepdim=True)
    if found_inf is not None:
        squares = where(found_inf > 0, second_momentum, squares)
    second_momentum.lerp_(squares, 1 - beta2)
    scaled = directions * second_momentum.clamp_min(1e-10).rsqrt()
    return scaled * (_frobenius(directions) / _frobenius(scaled).clamp_min(1e-10))


def second_momentum_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape of a matrix's factored second momentum: one number per row, or per column if those are more."""
    return (rows, 1) if rows >= columns else (1, columns)


def _iterate(matrices: Tensor, coefficients: list[tuple[float, float, float]]) -> Tensor:
    """Apply X -> aX + b(XX')X + c(XX')(XX')X for each triple, with the Gram matrix on the smaller side."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return _iterate(matrices.mT, coefficients).mT
    for a, b, c in coefficients:
        gram = matrices @ matrices.mT
        matrices = a * matrices + (b * gram + (c * gram) @ gram) @ matrices  # in bfloat16 the order of the products counts
    return matrices


def _unless(found_inf: Tensor | None, directions: Tensor) -> Tensor:
    return directions if found_inf is None else directions * (1 - found_inf)


def _equalize_rows(matrices: Tensor) -> Tensor:
    target = _frobenius(matrices) / matrices.shape[-2] ** 0.5
    return matrices * (target / matrices.norm(dim=-1, keepdim=True).clamp_min(1e-6))


def _frobenius(matrices: Tensor) -> Tensor:
    return matrices.norm(dim=(-2, -1), keepdim=True)
