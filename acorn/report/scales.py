"""Axes and curves as numbers: scales, ticks, smoothing, thinning. Pure functions; drawing is in `charts`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

Point = tuple[float, float]

MOST_POINTS = 1000
"""A curve keeps at most so many points: more cannot be told apart on a screen, and a page stays small."""


@dataclass(frozen=True)
class Scale:
    """Maps values `low..high` to positions `start..end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, self._inside(value)))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values between low and high."""
        return _log_ticks(self.low, self.high, most) if self.log else _round_ticks(self.low, self.high, most)

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def finite(points: Iterable[Point]) -> list[Point]:
    """Without the NaN and infinities of a run that diverged."""
    return [point for point in points if math.isfinite(point[1])]


def scale_over(values: Iterable[float], start: float, end: float, log: bool = False, zero: bool = False) -> Scale:
    """A scale whose ends lie a little outside `values` (at 0, if `zero` and nothing is below)."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = min(found, default=1.0), max(found, default=2.0)
    level = high - low <= 1e-6 * max(abs(low), abs(high))  # closer than ticks could tell apart
    if log:
        margin = 1.5 if level else (high / low) ** 0.04
        return Scale(low / margin, high * margin, start, end, log=True)
    margin = (0.1 * abs(high) or 1.0) if level else 0.05 * (high - low)
    bottom = min(0.0, low) if zero else low - margin
    return Scale(bottom, high + margin, start, end)


def spans_decades(values: Sequence[float], ratio: float = 5.0) -> bool:
    """Whether a logarithmic axis shows `values` better: all positive, and the largest many times the smallest."""
    found = [value for value in values if math.isfinite(value)]
    return bool(found) and min(found) > 0 and max(found) / min(found) >= ratio


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with 1-2-5 or 1-2-3-5-7 between them where the range is short."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [mantissa * 10.0**power for power in powers for mantissa in mantissas]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= most:
            break
    while len(inside) > most:
        inside = inside[::2]
    return inside if len(inside) > 1 else _round_ticks(low, high, 6)


def smoothed(points: Sequence[Point], share: float = 0.06) -> list[Point]:
    """Centred moving average over about `share` of the curve: unlike an exponential one it does not lag behind.

    Towards the start, where losses fall steeply, the window shrinks and stays centred; at the end it is cut off.
    """
    kept = finite(points)
    half = max(1, round(share * len(kept) / 2))
    sums = [0.0, *accumulate(y for _, y in kept)]
    result = []
    for index, (x, _) in enumerate(kept):
        first = index - min(half, index)
        last = min(index + (index - first), len(kept) - 1)
        result.append((x, (sums[last + 1] - sums[first]) / (last + 1 - first)))
    return result


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: lowest and highest of each stretch, so that no spike is lost; first and last are kept."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = [points[0]]
    stretches = max(1, (most - 2) // 2)
    inner = points[1:-1]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        kept += sorted({min(stretch, key=_height), max(stretch, key=_height)})
    return [*kept, points[-1]]


def _height(point: Point) -> float:
    return point[1]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, in its order of size, at least `gap` apart and inside low..high as far as they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    edge = low - gap
    for index in order:
        edge = placed[index] = max(wanted[index], edge + gap)
    edge = high + gap
    for index in reversed(order):
        edge = placed[index] = min(placed[index], edge - gap)
    return placed


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share among `n` trials (Wilson 1927); unlike +-1.96 standard errors it stays within 0..1."""
    if n <= 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
