"""Errors, intervals and paired tests, each from a fixed seed.

Drawn with replacement is the item (a problem, a document): another draw of items is what a reader wants to know about.
Two models that were asked the same items are compared item by item, so that hard items count for both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
AT_ONCE = 4_000_000
"""Numbers drawn at a time: 32 MB, however many items there are."""


@dataclass(frozen=True)
class Spread:
    """Standard error, and the range that holds 95 % of the bootstrap's values."""

    stderr: float
    low: float
    high: float


def spread(aggregate: Callable[..., Any], values: Sequence[Any], seed: int) -> Spread | None:
    """Of a mean: standard deviation / sqrt(n), and a percentile bootstrap. Of any other metric both by bootstrap. None
    for one value."""
    if len(values) < 2:
        return None
    if aggregate is np.mean:
        array = np.asarray(values, dtype=np.float64)
        low, high = np.quantile(means(array, seed), (0.025, 0.975))
        return Spread(float(array.std(ddof=1) / math.sqrt(len(array))), _round(low), _round(high))
    drawn = random.Random(seed)
    found = [float(aggregate(drawn.choices(values, k=len(values)))) for _ in range(DRAWS)]
    low, high = np.quantile(found, (0.025, 0.975))
    return Spread(float(np.std(found, ddof=1)), _round(low), _round(high))


def means(values: NDArray[np.float64], seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """Means of `draws` draws with replacement; `values` is 1-D, or one row an item."""
    random_ = np.random.default_rng(seed)
    size = max(1, AT_ONCE // max(1, values.size))
    parts = []
    for done in range(0, draws, size):
        rows = random_.integers(len(values), size=(min(size, draws - done), len(values)))
        parts.append(values[rows].mean(axis=1))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Paired:
    """Right minus left over the same items: the difference, its 95 % interval, and how many items there are."""

    difference: float
    low: float
    high: float
    n: int


def paired(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]], seed: int = 0) -> Paired:
    """Each item has (numerator, denominator): a metric is the ratio of their sums. For a mean the denominator is 1.

    Raises ValueError for no items.
    """
    if not left or len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} items cannot be compared in pairs")
    both = np.concatenate([np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)], axis=1)
    sums = means(both, seed)
    low, high = np.quantile(_gap(sums), (0.025, 0.975))
    return Paired(_round(_gap(both.mean(axis=0)[None])[0]), _round(low), _round(high), len(left))


def _gap(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    gap: NDArray[np.float64] = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    return gap


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of `lost` items that went from right to wrong and `won` the other way (McNemar 1947; the
    binomial test on the items that differ). 1 where none differs."""
    count, fewer = lost + won, min(lost, won)
    tail: float = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    return min(1.0, 2 * tail)


def _round(value: float) -> float:
    return round(float(value), 6)
