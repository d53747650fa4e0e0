"""How good step scores are, in numpy: first-error F1, AUC, calibration error, accuracy.

Labels are probabilities that a step is right; a label of at least 0.5 counts as right. Only labelled steps take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS = 15
"""Bins of equal width for the calibration error (Guo et al. 2017, arXiv:1706.04599, section 2)."""


@dataclass(frozen=True)
class Scored:
    """The labelled steps of one solution."""

    level: int
    labels: Floats
    scores: Floats


def first_below(values: Floats, threshold: float) -> int:
    """Index of the first value below `threshold`; -1 where there is none."""
    below = np.flatnonzero(values < threshold)
    return int(below[0]) if len(below) else -1


def first_error(rows: Sequence[Scored], threshold: float) -> dict[str, float]:
    """ProcessBench's measure (Zheng et al. 2024, arXiv:2412.06559, section 4): `erroneous` is the share of wrong
    solutions whose first wrong step is named exactly, `correct` the share of right ones in which none is named,
    `first_error_f1` their harmonic mean. A side without rows counts as 0.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        truth = first_below(row.labels, 0.5)
        hits[truth < 0].append(first_below(row.scores, threshold) == truth)
    correct, erroneous = (float(np.mean(hits[side])) if hits[side] else 0.0 for side in (True, False))
    total = correct + erroneous
    f1 = 2 * correct * erroneous / total if total else 0.0
    return {"first_error_f1": f1, "first_error_correct": correct, "first_error_erroneous": erroneous}


def fit_threshold(rows: Sequence[Scored]) -> float:
    """The threshold of the largest first-error F1, among 199 quantiles of the scores; 0.5 without rows."""
    if not rows:
        return 0.5
    scores = np.concatenate([row.scores for row in rows])
    candidates = np.unique(np.quantile(scores, np.linspace(0.005, 0.995, 199)))
    found = [first_error(rows, float(candidate))["first_error_f1"] for candidate in candidates]
    # The middle of the best ones: F1 is flat there, and a quantile itself may be one row's score.
    best = candidates[np.flatnonzero(np.asarray(found) == max(found))]
    return float(best[len(best) // 2])


def auc(right: NDArray[np.bool_], scores: Floats) -> float:
    """Probability that a right step scores above a wrong one, ties half; 0.5 where one of the kinds is absent."""
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(labels: Floats, scores: Floats) -> list[dict[str, float]]:
    """Bins of equal width that are not empty: number of steps, mean score, mean label."""
    index = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        {"steps": int(inside.sum()), "score": float(scores[inside].mean()), "label": float(labels[inside].mean())}
        for inside in (index == number for number in range(BINS))
        if inside.any()
    ]


def calibration_error(labels: Floats, scores: Floats) -> float:
    """ECE: the mean distance of score and label over the bins of `reliability`, weighted by their steps."""
    bins = reliability(labels, scores)
    return sum(one["steps"] * abs(one["score"] - one["label"]) for one in bins) / len(scores)


def measure(rows: Sequence[Scored], threshold: float) -> dict[str, float]:
    """All figures of `rows`. `accuracy` is at 0.5, beside `base_rate`, the share of right steps."""
    labels = np.concatenate([row.labels for row in rows])
    scores = np.concatenate([row.scores for row in rows])
    right = labels >= 0.5
    return {
        **first_error(rows, threshold),
        "auc": auc(right, scores),
        "ece": calibration_error(labels, scores),
        "accuracy": float(((scores >= 0.5) == right).mean()),
        "base_rate": float(right.mean()),
    }


def by_level(rows: Iterable[Scored], threshold: float) -> dict[int, dict[str, float]]:
    """`measure` for the rows of each level."""
    groups: dict[int, list[Scored]] = {}
    for row in rows:
        groups.setdefault(row.level, []).append(row)
    return {level: {**measure(groups[level], threshold), "rows": len(groups[level])} for level in sorted(groups)}
