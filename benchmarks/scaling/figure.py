"""Small SVGs with logarithmic axes: lines of the simulation, and points that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 46  # margins
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One series; `dots` draws its points and no line between them."""

    name: str
    points: Points
    colour: str
    dashed: bool = False
    dots: bool = False


def save(
    file: Path,
    title: str,
    axes: tuple[str, str],
    x: tuple[float, float],
    y: tuple[float, float],
    lines: Sequence[Line],
    mark: tuple[float, str] | None = None,
) -> None:
    """Write the figure. `x` and `y` are the ends of the axes; `mark` is a vertical line at an x, with a text."""
    across, up = _axis(x, LEFT, WIDTH - RIGHT), _axis(y, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2:g}" y="18" text-anchor="middle">{title}</text>',
    ]
    for value in _decades(x):
        parts.append(_rule(across(value), HEIGHT - BOTTOM, across(value), TOP))
        parts.append(_text(across(value), HEIGHT - BOTTOM + 15, _short(value)))
    for value in _decades(y):
        parts.append(_rule(LEFT, up(value), WIDTH - RIGHT, up(value)))
        parts.append(_text(LEFT - 6, up(value) + 4, _short(value), "end"))
    if mark is not None:
        at = across(mark[0])
        parts.append(f'<path d="M{at:.1f} {HEIGHT - BOTTOM}V{TOP}" stroke="#c00" stroke-dasharray="2 3"/>')
        parts.append(_text(at - 5, TOP + 12, mark[1], "end", "#c00"))
    for number, line in enumerate(lines):
        shown = [(across(a), up(b)) for a, b in line.points if x[0] <= a <= x[1] and y[0] <= b <= y[1]]
        top = TOP + 28 + 15 * number
        if line.dots:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{line.colour}"/>' for a, b in shown]
            parts.append(f'<circle cx="{LEFT + 17}" cy="{top - 4}" r="4" fill="{line.colour}"/>')
        else:
            dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in shown)
            pen = f'fill="none" stroke="{line.colour}" stroke-width="1.6"{dashes}/>'
            parts.append(f'<path d="M{path}" {pen}')
            parts.append(f'<path d="M{LEFT + 8} {top - 4}h18" {pen}')
        parts.append(_text(LEFT + 32, top, line.name, "start"))
    parts += [
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, axes[0]),
        f'<text transform="translate(15 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">{axes[1]}'
        "</text></svg>\n",
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts), encoding="utf-8")


def _text(x: float, y: float, text: str, anchor: str = "middle", fill: str = "#000") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{text}</text>'


def _rule(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#ddd"/>'


def _decades(ends: tuple[float, float]) -> list[float]:
    low, high = math.ceil(math.log10(ends[0]) - 1e-9), math.floor(math.log10(ends[1]) + 1e-9)
    return [10.0**power for power in range(low, high + 1)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


class _axis:
    """A function from a value to a coordinate."""

    def __init__(self, ends: tuple[float, float], start: float, end: float) -> None:
        self._low, self._span = math.log(ends[0]), math.log(ends[1] / ends[0])
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return self._start + (math.log(value) - self._low) / self._span * self._length
