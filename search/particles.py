"""Particle filtering: the model proposes a step, the verifier weighs it, particles are drawn anew by weight.

Plain (Puri et al. 2025, arXiv:2502.01618, algorithm 1): weights are softmax(logit(score) / temperature), and finished
particles are drawn like live ones. Entropic (after Giannone et al. 2025, arXiv:2510.05825): a verifier that is sure of
itself too early leaves copies of one particle, so while the entropy of the weights is below what the step demands,
the temperature is raised just enough; the demand falls to nothing over the first steps. Their look-ahead is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from search.options import EntropicParticles, Particles
from search.scheduler import Search
from search.tree import Outcome
from search.trial import Trial

_SURE = 1e-4
"""Scores are kept this far from 0 and 1: a logit of 9.2, not infinity."""


def particles(trial: Trial, options: Particles | EntropicParticles) -> Search[Outcome]:
    random = Random(trial.seed)
    root = yield from trial.root()
    crowd = [root] * options.size
    step = 0
    while growing := [path for path in crowd if path.status == "live"]:
        ended = [path for path in crowd if path.status != "live"]
        children = trial.branch(growing)
        yield from trial.grow(children)
        trial.drop(growing)
        crowd = ended + children
        if any(path.status == "live" for path in crowd):
            weights = _weights([trial.rank(path) for path in crowd], options, step)
            crowd = [crowd[index] for index in resample(weights, len(crowd), random.random())]
        trial.drop([child for child in children if child not in crowd or child.status != "live"])
        step += 1
    return trial.conclude(crowd, options.vote)


def resample(weights: Sequence[float], count: int, offset: float) -> list[int]:
    """`count` indices by systematic resampling: one uniform number `offset`, an even comb over the weights.

    An index comes floor(count * weight) or one more times, so a particle of average weight is never lost by bad luck.
    """
    drawn, reached, index = [], weights[0], 0
    for tooth in range(count):
        while reached <= (tooth + offset) / count and index < len(weights) - 1:
            index += 1
            reached += weights[index]
        drawn.append(index)
    return drawn


def _weights(scores: Sequence[float], options: Particles | EntropicParticles, step: int) -> list[float]:
    logits = [math.log(s / (1 - s)) for s in (min(max(score, _SURE), 1 - _SURE) for score in scores)]
    if isinstance(options, Particles):
        return softmax(logits, options.temperature)
    demand = options.entropy * max(0.0, 1 - step / options.steps)
    return softmax(logits, flatten(logits, options.temperature, demand))


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(weights: Sequence[float]) -> float:
    """In 0..1 of the largest that so many weights could have."""
    if len(weights) < 2:
        return 1.0
    return -math.fsum(weight * math.log(weight) for weight in weights if weight > 0) / math.log(len(weights))


def flatten(logits: Sequence[float], temperature: float, demand: float) -> float:
    """The smallest temperature from `temperature` up at which the weights have `demand` of the largest entropy."""
    if entropy(softmax(logits, temperature)) >= demand:
        return temperature
    low = high = temperature
    while entropy(softmax(logits, high)) < demand:
        low, high = high, high * 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if entropy(softmax(logits, middle)) >= demand else (middle, high)
    return high
