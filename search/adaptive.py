"""Adaptive consistency: draw samples until the vote is decided (Aggarwal et al. 2023, arXiv:2305.11860, section 3).

With a uniform prior, the shares of the answers are Dirichlet(votes + 1). `beta` looks at the two leading answers alone:
P(p1 > p2) is a Beta tail and, the counts being whole numbers, a sum of binomials. `dirichlet` asks that p1 is the
largest of all, by integration over gamma variables. Both are exact up to rounding; nothing is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.options import Adaptive
from search.scheduler import Search
from search.tree import Outcome
from search.trial import Path, Trial
from search.votes import group

_POINTS = 400
"""Intervals of the integral; 400 give seven digits for counts up to a thousand."""


def adaptive(trial: Trial, options: Adaptive) -> Search[Outcome]:
    root = yield from trial.root()
    paths: list[Path] = []
    while not _decided(trial, paths, options):
        wave = trial.start(root, min(options.wave, options.size - len(paths)))
        if not wave:
            break
        yield from trial.run_out(wave)
        trial.drop(wave)
        paths += wave
    return trial.conclude(paths, "majority")


def _decided(trial: Trial, paths: Sequence[Path], options: Adaptive) -> bool:
    votes = sorted((len(members) for members in group(trial.candidates(paths), trial.setup.reader.same)), reverse=True)
    if not votes:
        return False
    sure = leads_second(votes) if options.stop == "beta" else leads_all(votes)
    return sure >= options.threshold


def leads_second(votes: Sequence[int]) -> float:
    """P(p1 > p2) for Beta(v1 + 1, v2 + 1); `votes` largest first, a missing second counts 0."""
    first, second = votes[0], votes[1] if len(votes) > 1 else 0
    trials = first + second + 1
    return float(math.fsum(math.comb(trials, k) for k in range(first + 1)) / 2**trials)


def leads_all(votes: Sequence[int]) -> float:
    """P(p1 is the largest) for Dirichlet(votes + 1), with one more answer that nobody has given yet.

    Dirichlet shares are gamma variables over their sum: the probability is the integral of the density of
    Gamma(v1 + 1) times the distribution functions of the others, by Simpson's rule.
    """
    shapes = [count + 1 for count in votes] + [1]
    end = shapes[0] + 12 * math.sqrt(shapes[0]) + 12
    width = end / _POINTS
    values = [
        _gamma_density(shapes[0], i * width) * math.prod(_gamma_below(shape, i * width) for shape in shapes[1:])
        for i in range(_POINTS + 1)
    ]
    return width / 3 * math.fsum(v * (1 if i in (0, _POINTS) else 4 if i % 2 else 2) for i, v in enumerate(values))


def _gamma_density(shape: int, x: float) -> float:
    if x == 0:
        return 1.0 if shape == 1 else 0.0
    return math.exp((shape - 1) * math.log(x) - x - math.lgamma(shape))


def _gamma_below(shape: int, x: float) -> float:
    """Distribution function of Gamma(shape) for a whole shape: 1 - P(Poisson(x) < shape)."""
    term = total = math.exp(-x)
    for k in range(1, shape):
        term *= x / k
        total += term
    return max(0.0, 1.0 - total)
