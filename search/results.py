"""Figures of a search: accuracy, tokens, pass@k, with intervals; and the paired comparison of two searches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from search.intervals import Interval, interval
from search.records import OutcomeRow, read
from search.votes import pass_at_k


def summarise(rows: Sequence[OutcomeRow]) -> list[dict[str, Any]]:
    """For each method and n: over everything, per level, and per seed (`level`, `seed` None: all of them)."""
    runs: dict[tuple[str, int], list[OutcomeRow]] = defaultdict(list)
    for row in rows:
        runs[row["method"], row["n"]].append(row)
    return [
        {"method": method, "n": n, **cut, **_figures(chosen)}
        for (method, n), own in runs.items()
        for cut, chosen in _cuts(own)
    ]


def passes(counts: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """pass@k for each of `sizes`; `counts` has `seed`, `id`, `level`, `samples` and `right` of each sampling."""
    return [{"k": k, **cut, **asdict(_pass_interval(chosen, k))} for k in sizes for cut, chosen in _cuts(counts)]


def _pass_interval(counts: Sequence[Mapping[str, Any]], k: int) -> Interval:
    return interval(_by_problem(counts, lambda row: pass_at_k(row["samples"], row["right"], k)))


def _figures(rows: Sequence[OutcomeRow]) -> dict[str, Any]:
    return {
        **asdict(interval(_by_problem(rows, lambda row: float(row["correct"])))),
        "generated": round(fmean(row["generated"] for row in rows), 3),
        "scored": round(fmean(row["scored"] for row in rows), 3),
        "tokens": round(fmean(row["generated"] + row["scored"] for row in rows), 3),
    }


def _cuts(rows: Sequence[Any]) -> Iterable[tuple[dict[str, int | None], list[Any]]]:
    yield {"level": None, "seed": None}, list(rows)
    for level in sorted({row["level"] for row in rows}):
        yield {"level": level, "seed": None}, [row for row in rows if row["level"] == level]
    for seed in sorted({row["seed"] for row in rows}):
        yield {"level": None, "seed": seed}, [row for row in rows if row["seed"] == seed]


def _by_problem(rows: Iterable[Any], value: Callable[[Any], float]) -> list[float]:
    """Mean over the seeds of each problem."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["id"]].append(value(row))
    return [fmean(values) for values in found.values()]


def compare(
    first: Path, second: Path, methods: tuple[str, str], sizes: tuple[int, int] = (1, 1), level: int | None = None
) -> Interval:
    """Accuracy of `first` (method and n) minus that of `second`, problem by problem, with its 95 % interval.

    Both are folders of search artifacts. Raises ValueError where they share no problem, or hold none of the method.
    """
    sides = [
        _accuracies(folder, method, n, level) for folder, method, n in zip((first, second), methods, sizes, strict=True)
    ]
    shared = [problem for problem in sides[0] if problem in sides[1]]
    if not shared:
        raise ValueError(
            f"{first} and {second} share no problem: search both on one corpus with the same split, problems and "
            "problem_seed"
        )
    return interval([sides[0][problem] - sides[1][problem] for problem in shared])


def _accuracies(folder: Path, method: str, n: int, level: int | None) -> dict[str, float]:
    """Problem -> share of seeds that got it right."""
    found: dict[str, list[float]] = defaultdict(list)
    known = set()
    for row in read(folder / "outcomes.jsonl"):
        known.add(f"{row['method']} at n={row['n']}")
        if row["method"] == method and row["n"] == n and level in (None, row["level"]):
            found[row["id"]].append(float(row["correct"]))
    if not found:
        raise ValueError(
            f"{folder} has no {method} at n={n} (level {level or 'any'}); it has {', '.join(sorted(known))}"
        )
    return {problem: fmean(values) for problem, values in found.items()}
