"""From candidates to an answer: best of N, majority, weighted; and pass@k.

Only finished solutions with a readable answer take part. Answers that are equal in value are one answer. Ties go to
the candidate or answer that came first, so that the result does not depend on anything but the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from search.tree import Candidate

Aggregation = Literal["last", "min", "prod", "mean"]
Vote = Literal["best", "weighted", "majority"]
Same = Callable[[str, str], bool]


def aggregate(scores: Sequence[float], how: Aggregation) -> float:
    """One score of a solution from the scores of its steps (Snell et al. 2024, arXiv:2408.03314, section 5.1);
    0 where no step was scored."""
    if not scores:
        return 0.0
    match how:
        case "last":
            return scores[-1]
        case "min":
            return min(scores)
        case "prod":
            return math.prod(scores)
        case "mean":
            return math.fsum(scores) / len(scores)


def group(candidates: Sequence[Candidate], same: Same) -> list[list[int]]:
    """Indices of the candidates that may vote, by answer, in order of first appearance."""
    groups: list[list[int]] = []
    for index, candidate in enumerate(candidates):
        if not candidate.finished or candidate.answer is None:
            continue
        for members in groups:
            if same(candidates[members[0]].answer or "", candidate.answer):
                members.append(index)
                break
        else:
            groups.append([index])
    return groups


def choose(candidates: Sequence[Candidate], vote: Vote, same: Same) -> int | None:
    """Index of the winner: for `best` the highest score, else the best of the answer with most votes.

    `majority` is self-consistency (Wang et al. 2022, arXiv:2203.11171); `weighted` adds up the candidates' weights,
    which are their scores unless the method says otherwise (Li et al. 2023, arXiv:2206.02336, section 3).
    """
    groups = group(candidates, same)
    if not groups:
        return None
    match vote:
        case "best":
            pool = [index for members in groups for index in members]
        case "majority":
            pool = max(groups, key=len)
        case "weighted":
            pool = max(groups, key=lambda members: math.fsum(_weight(candidates[index]) for index in members))
    return max(sorted(pool), key=lambda index: _weight(candidates[index]))


def _weight(candidate: Candidate) -> float:
    return candidate.score if candidate.weight is None else candidate.weight


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that one of k samples is right, unbiased (Chen et al. 2021, arXiv:2107.03374, equation 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def vote_entropy(candidates: Sequence[Candidate], same: Same) -> float:
    """Entropy of the answers over all candidates, in 0..1 of its largest; a candidate without an answer is alone."""
    sizes = [len(members) for members in group(candidates, same)]
    total = len(candidates)
    if total < 2:
        return 0.0
    sizes += [1] * (total - sum(sizes))
    return -math.fsum(size / total * math.log(size / total) for size in sizes) / math.log(total)
