"""95 % intervals by bootstrap over problems.

The unit that is drawn with replacement is the problem, with all its seeds: samples of one problem are not independent,
and a new set of problems is what a reader wants to know about. 2,000 draws from a fixed seed, percentile interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and the range that holds 95 % of the bootstrap's."""

    mean: float
    low: float
    high: float
    problems: int


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of `values`, one a problem (its mean over seeds). Raises ValueError for none."""
    if not len(values):
        raise ValueError("no problems to take the mean of")
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(0)
    means = np.concatenate(
        [array[random.integers(len(array), size=(chunk, len(array)))].mean(axis=1) for chunk in (DRAWS // 4,) * 4]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(_round(array.mean()), _round(low), _round(high), len(array))


def _round(value: float) -> float:
    return round(float(value), 6)
