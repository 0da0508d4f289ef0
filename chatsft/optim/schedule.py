"""The learning-rate multiplier and Muon's momentum over training."""


def lr_multiplier(progress: float, warmup_ratio: float = 0.0, warmdown_ratio: float = 1.0, final_lr_frac: float = 0.0) -> float:
    """Return the factor on every learning rate at `progress` (0 at the first update, 1 at the end).

    Warm-up, plateau, then a straight line down to `final_lr_frac`. The defaults give the 2025 rule `1 - progress`.
    Where warm-up and warm-down overlap, warm-up wins. Warm-up starts 1e-8 above zero, as nanochat's does. nanochat lets
    the line run on below zero when data outlasts the plan; here progress stops at 1.

    >>> [lr_multiplier(p, warmdown_ratio=0.5) for p in (0.0, 0.5, 0.75, 1.0, 1.3)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if progress < warmup_ratio:
        return (progress + 1e-8) / warmup_ratio
    progress = min(progress, 1.0)
    if progress <= 1.0 - warmdown_ratio:
        return 1.0
    remaining = 1.0 - (progress - (1.0 - warmdown_ratio)) / warmdown_ratio
    return remaining + (1.0 - remaining) * final_lr_frac


def muon_momentum(step: int, final: float = 0.95, warmup_steps: int = 300) -> float:
    """Return Muon's momentum at update `step`: a straight line from 0.85 to `final`, or `final` at once without warm-up.

    >>> [round(muon_momentum(step), 4) for step in (0, 150, 300, 1000)]
    [0.85, 0.9, 0.95, 0.95]
    """
    if step >= warmup_steps:
        return final
    fraction = step / warmup_steps
    return (1.0 - fraction) * 0.85 + fraction * final
