"""The scaling curve as a small SVG: validation loss against parameters, both axes logarithmic, with the fitted line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.four_systems.runs import SIZES

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 30, 44  # margins
ROOM = 0.08  # of each axis, beyond its outermost points


def save_figure(result: dict[str, Any], file: Path) -> Path:
    """Write the figure of what `table.collect` returned.

    Raises:
        ValueError: not all sizes of the curve are trained and measured.
    """
    if "scaling" not in result:
        raise ValueError(f"the scaling curve needs the losses of all sizes: {', '.join(SIZES)}")
    points = [(result["sizes"][name]["parameters"], result["sizes"][name]["loss"]) for name in SIZES]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(scaling_svg(points, result["scaling"]), encoding="utf-8")
    return file


def scaling_svg(points: list[tuple[float, float]], fit: dict[str, float]) -> str:
    """The SVG of points (parameters, loss) and of loss = factor · parameters^exponent."""
    fitted = [fit["factor"] * size ** fit["exponent"] for size, _ in points]
    across = _axis([math.log(size) for size, _ in points], LEFT, WIDTH - RIGHT)
    up = _axis([math.log(y) for y in (*(loss for _, loss in points), *fitted)], HEIGHT - BOTTOM, TOP)
    ends = [(across(math.log(points[i][0])), up(math.log(fitted[i]))) for i in (0, -1)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>',
        f'<path d="M{ends[0][0]:.1f} {ends[0][1]:.1f}L{ends[1][0]:.1f} {ends[1][1]:.1f}" stroke="#c60" '
        'stroke-dasharray="5 4"/>',
    ]
    for size, loss in points:
        x, y = across(math.log(size)), up(math.log(loss))
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#06c"/>',
            f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{loss:.4f}</text>',
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{size / 1e6:.2f} M</text>',
        ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">parameters (logarithmic)</text>',
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "validation loss (logarithmic)</text>",
        f'<text x="{middle}" y="18" text-anchor="middle">random order, continuous tokens: '
        f"loss ∝ parameters^{fit['exponent']:.3f}, R² {fit['r2']:.3f}</text>",
        "</svg>\n",
    ]
    return "\n".join(parts)


def _axis(values: list[float], start: float, end: float) -> Any:
    """A function from a logarithm to a coordinate, with room on both sides of all values."""
    low, high = min(values), max(values)
    span = (high - low or 1.0) * (1 + 2 * ROOM)
    return lambda value: start + (value - low + ROOM * span) / span * (end - start)
