"""Several answers to one problem: pass@k, maj@k and weighted@k."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb, fsum


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({most, *(1 << power for power in range(most.bit_length()))})


def pass_at_k(rights: Sequence[bool], k: int) -> float:
    """Probability that one of k answers is right, unbiased over all (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""
    right = sum(rights)
    return 1.0 - comb(len(rights) - right, k) / comb(len(rights), k)


def vote(answers: Sequence[Hashable | None], rights: Sequence[bool], weights: Sequence[float] | None = None) -> float:
    """1 if the answer with most votes, or most weight, is right (Wang et al. 2022, arXiv:2203.11171). None does not
    vote; ties go to the answer that came first."""
    votes: dict[Hashable, list[float]] = {}
    right: dict[Hashable, bool] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            votes.setdefault(answer, []).append(1.0 if weights is None else weights[place])
            right.setdefault(answer, bool(rights[place]))
    return float(right[max(votes, key=lambda answer: fsum(votes[answer]))]) if votes else 0.0


def at_k(answers: Sequence[Hashable | None], rights: Sequence[bool], k: int) -> dict[str, float]:
    """`pass@k` over all answers and `maj@k` of the first k."""
    return {f"pass@{k}": pass_at_k(rights, k), f"maj@{k}": vote(answers[:k], rights[:k])}
