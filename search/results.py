"""Figures of a search: accuracy, tokens, pass@k, with intervals; and the paired comparison of two searches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Solved:
    """Which problems a method solved at one n: problem -> share of the seeds, by level."""

    levels: dict[str, int]
    shares: dict[str, float]

    def minus(self, other: Solved, level: int | None = None) -> Interval:
        """Mean difference on the problems of `level` (None: all), paired, with its 95 % interval.

        Raises ValueError where both know none of the same problems.
        """
        shared = [name for name in self.shares if name in other.shares and level in (None, self.levels[name])]
        if not shared:
            raise ValueError(
                "the searches share no problem: run both on one corpus with the same split, problems and problem_seed"
            )
        return interval([self.shares[name] - other.shares[name] for name in shared])


def solved(folder: Path) -> dict[tuple[str, int], Solved]:
    """Every method and n of a search artifact."""
    rights: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    levels: dict[str, int] = {}
    for row in read(folder / "outcomes.jsonl"):
        rights[row["method"], row["n"]][row["id"]].append(float(row["correct"]))
        levels[row["id"]] = row["level"]
    return {
        run: Solved(levels, {name: fmean(values) for name, values in found.items()}) for run, found in rights.items()
    }
