"""REBASE: the width of the tree is shared out by reward (Wu et al. 2024, arXiv:2408.00724, section 3.2).

Each round, the sequences not yet finished share what is left of the width in proportion to softmax(score /
temperature); a finished solution keeps one of the places. No rollouts and no backing up, so a step is scored once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.options import Rebase
from search.scheduler import Search
from search.tree import Outcome
from search.trial import Path, Trial


def rebase(trial: Trial, options: Rebase) -> Search[Outcome]:
    root = yield from trial.root()
    live, ended = [root], list[Path]()
    counts = [options.size]
    while live:
        parents = live
        children = trial.branch(_spread(live, counts))
        yield from trial.grow(children)
        trial.drop(parents)
        ended += [child for child in children if child.status != "live"]
        live = sorted((child for child in children if child.status == "live"), key=trial.rank, reverse=True)
        counts = shares([trial.rank(path) for path in live], options.size - len(ended), options.temperature)
        dropped = [path for path, count in zip(live, counts, strict=True) if not count]
        trial.drop([*dropped, *ended])
        live, counts = live[: len(live) - len(dropped)], [count for count in counts if count]
    return trial.conclude(ended, options.vote)


def shares(scores: Sequence[float], width: int, temperature: float) -> list[int]:
    """`width` places by softmax(score / temperature), whole numbers by largest remainder; `scores` best first."""
    if not scores:
        return []
    weights = [math.exp((score - scores[0]) / temperature) for score in scores]
    exact = [width * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: width - sum(counts)]:
        counts[index] += 1
    return counts


def _spread(live: Sequence[Path], counts: Sequence[int]) -> list[Path]:
    """Every path's first child before any second one: what the budget cannot pay is the last of these."""
    return [path for turn in range(max(counts)) for path, count in zip(live, counts, strict=True) if turn < count]
