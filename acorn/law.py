"""A scaling law fitted to a few trained sizes: loss = floor + scale * (compute / unit) ^ -exponent.

The series it is for is compute-optimal, size and data growing together, so one variable tells all (Kaplan et al. 2020,
arXiv:2001.08361, and with an irreducible loss Hoffmann et al. 2022). The fit is that of Hoffmann et al., approach 3
(arXiv:2203.15556, appendix D.2): Huber loss on the log of the loss, L-BFGS from a grid of starting points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Point = tuple[float, float]
"""(compute in FLOPs, loss in nats per token)"""

DELTA = 1e-3
"""Of the Huber loss: a residual beyond 0.1 % counts by its size, no longer by its square."""
LEAST_POINTS = 3
"""As many as the law has constants; a fourth is the first that can contradict it."""


@dataclass(frozen=True)
class Law:
    floor: float
    """Loss at endless compute, if the law held so far."""
    scale: float
    """Above the floor at `unit`."""
    exponent: float
    unit: float
    """FLOPs; the geometric mean of the sizes fitted."""

    def __call__(self, compute: float) -> float:
        return self.floor + self.scale * math.pow(compute / self.unit, -self.exponent)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """What the law says of a size that was not fitted."""

    compute: float
    loss: float
    low: float
    high: float
    """Lowest and highest of the predictions with one size left out: how much hangs on a single run. It is no confidence
    interval."""


class TooFewSizes(ValueError):
    """Fewer sizes than a law has constants."""


def fit(points: Sequence[Point]) -> Law:
    """The law that fits `points` best. Raises TooFewSizes for fewer than 3 different sizes, ValueError for a loss or
    compute that is not positive and finite."""
    for compute, loss in points:
        if not (0 < compute < math.inf and 0 < loss < math.inf):
            raise ValueError(f"a law needs positive, finite figures, not compute {compute} and loss {loss}")
    if len({compute for compute, _ in points}) < LEAST_POINTS:
        raise TooFewSizes(f"{len(points)} sizes are too few for a law of three constants: train at least 3, better 4")
    unit = math.exp(sum(math.log(compute) for compute, _ in points) / len(points))
    offsets = [math.log(compute / unit) for compute, _ in points]
    losses = [math.log(loss) for _, loss in points]
    log_floor, log_scale, exponent = _minimise(offsets, losses)
    return Law(math.exp(log_floor), math.exp(log_scale), exponent, unit)


def predict(points: Sequence[Point], compute: float) -> Prediction:
    """Loss at `compute`, by the law of all points; its range by the laws of all but one, where enough are left."""
    loss = fit(points)(compute)
    rest = [[*points[:index], *points[index + 1 :]] for index in range(len(points))]
    others = [fit(some)(compute) for some in rest if len({one for one, _ in some}) >= LEAST_POINTS]
    return Prediction(compute, loss, min([loss, *others]), max([loss, *others]))


def _minimise(offsets: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float]:
    """log floor, log scale, exponent with the least Huber loss, over all starting points."""
    import numpy as np
    from scipy.optimize import minimize

    x, y = np.array(offsets), np.array(losses)
    lowest = float(y.min())

    def cost(constants: Any) -> tuple[float, Any]:
        """Huber loss and its gradient, both over delta^2 (L-BFGS stops at small absolute numbers)."""
        log_floor, log_scale, exponent = constants
        predicted = np.logaddexp(log_floor, log_scale - exponent * x)
        residual = predicted - y
        inner = np.clip(residual, -DELTA, DELTA)
        share = np.exp(log_floor - predicted)  # of the floor in the prediction
        slopes = np.stack([share, 1 - share, -(1 - share) * x])
        return float(np.sum(inner * (residual - 0.5 * inner))) / DELTA**2, slopes @ inner / DELTA**2

    # A floor lies below the lowest loss seen; 1e-9 of it is none.
    bounds = [(lowest + math.log(1e-9), lowest), (lowest - 20.0, lowest + 20.0), (1e-4, 5.0)]
    starts = itertools.product(
        [lowest + math.log(share) for share in (1e-6, 0.5, 0.9)],
        [lowest - 1.0, lowest],
        [0.05, 0.3, 1.0],
    )
    found = [minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(found, key=lambda one: float(one.fun))
    log_floor, log_scale, exponent = (float(value) for value in best.x)
    return log_floor, log_scale, exponent
