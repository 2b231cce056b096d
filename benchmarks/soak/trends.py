"""Slope of a series over time: Theil-Sen with Sen's confidence interval, over medians of blocks.

Neighbouring samples of memory depend on each other, which would make an interval over all of them far too narrow; the
medians of a few dozen blocks hardly do. A series grows if the whole interval is above zero and the rise over the run
exceeds both the scatter of the samples and the floor, the least rise that matters.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

BLOCKS = 30
FEWEST_PER_BLOCK = 3
Z = 2.576  # 99 %: some thirty series are judged in a run
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Trend:
    """Slope per hour with its interval, the rise over the whole series, and the noise that hides smaller rises."""

    level: float  # median
    per_hour: float
    low: float
    high: float
    rise: float
    noise: float

    @property
    def verdict(self) -> str:
        if self.low > 0 and self.rise > self.noise:
            return "grows"
        return "falls" if self.high < 0 and -self.rise > self.noise else "zero within noise"


def trend(at_s: Sequence[float], values: Sequence[float], floor: float = 0.0) -> Trend | None:
    """Return the trend of a series with times in seconds; None if it is too short to have one."""
    times, medians = _block_medians(at_s, values)
    if len(times) < 4:
        return None
    slope, low, high = theil_sen(times, medians)
    middle = statistics.median(v - slope * t for t, v in zip(at_s, values, strict=True))
    scatter = MAD_TO_SIGMA * statistics.median(abs(v - slope * t - middle) for t, v in zip(at_s, values, strict=True))
    return Trend(
        level=statistics.median(values),
        per_hour=3600 * slope,
        low=3600 * low,
        high=3600 * high,
        rise=slope * (at_s[-1] - at_s[0]),
        noise=max(floor, scatter),
    )


def theil_sen(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the slopes between all pairs of points, and the ends of its confidence interval."""
    points = list(zip(times, values, strict=True))
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if b[0] > a[0])
    n, pairs = len(points), len(slopes)
    half = Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((pairs - half) / 2))
    high = min(pairs - 1, math.ceil((pairs + half) / 2))
    return statistics.median(slopes), slopes[low], slopes[high]


def _block_medians(at_s: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    count = min(BLOCKS, len(values) // FEWEST_PER_BLOCK)
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    blocks = [slice(begin, end) for begin, end in itertools.pairwise(edges)]
    return [statistics.median(at_s[block]) for block in blocks], [statistics.median(values[block]) for block in blocks]
