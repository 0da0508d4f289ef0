"""Curves over training steps as an SVG picture, for places where no plotting library is."""

import math
from collections.abc import Sequence

from chatsft.pages.picture import Picture

WIDTH, HEIGHT, MARGIN = 720, 360, 56
COLORS = ("#4c78a8", "#e45756", "#54a24b", "#b279a2")

Points = Sequence[tuple[float, float]]


def draw_curves(curves: dict[str, Points], x_label: str = "optimizer step") -> Picture:
    """Draw named curves, each a sequence of (x, y), into one pair of axes; what cannot be drawn is left out.

    >>> draw_curves({"loss": [(1, 2.5), (2, 1.5)], "norm": [(1, float("nan"))]}).count("<polyline")
    1
    """
    curves = {name: drawn for name, points in curves.items() if (drawn := finite(points))}
    every = [point for points in curves.values() for point in points]
    x_range, y_range = (_range([point[axis] for point in every]) for axis in (0, 1))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#555">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *_axes(x_range, y_range, x_label),
    ]
    for number, (name, points) in enumerate(curves.items()):
        lines += _curve(name, [(_place(x, x_range, MARGIN, WIDTH), _place_up(y, y_range)) for x, y in points], number)
    return Picture("\n".join([*lines, "</svg>", ""]))


def finite(points: Points, positive: bool = False) -> Points:
    """Leave out what cannot be drawn.

    >>> finite([(1, 2.0), (2, float("nan")), (3, 0.0)], positive=True)
    [(1, 2.0)]
    """
    return [(step, value) for step, value in points if math.isfinite(value) and (value > 0 or not positive)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _place(value: float, bounds: tuple[float, float], start: float, end: float) -> float:
    low, high = bounds
    return round(start + (value - low) / (high - low) * (end - MARGIN - start), 2)


def _place_up(value: float, bounds: tuple[float, float]) -> float:
    return round(HEIGHT - _place(value, bounds, MARGIN, HEIGHT), 2)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], x_label: str) -> list[str]:
    bottom = HEIGHT - MARGIN
    lines = [
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#999"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{x_label}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = (low + share * (high - low) for low, high in (x_range, y_range))
        lines.append(f'<text x="{_place(x, x_range, MARGIN, WIDTH)}" y="{bottom + 18}" text-anchor="middle">{x:.0f}</text>')
        lines.append(f'<text x="{MARGIN - 8}" y="{_place_up(y, y_range) + 4}" text-anchor="end">{y:.3g}</text>')
    return lines


def _curve(name: str, places: list[tuple[float, float]], number: int) -> list[str]:
    color = COLORS[number % len(COLORS)]
    path = " ".join(f"{x},{y}" for x, y in places)
    dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places] if len(places) < 30 else []
    label = f'<text x="{WIDTH - MARGIN}" y="{24 + 16 * number}" text-anchor="end" fill="{color}">{name}</text>'
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>', *dots, label]
