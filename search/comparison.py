"""The `search_comparison` stage: who beats whom, and by how much, on the same problems.

Differences are paired problem by problem (each problem's mean over seeds), so that an easy or hard draw of problems
cancels out: their intervals are narrower than those of the two accuracies.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from acorn.stage import Job
from search.config import ComparisonConfig, Opponent
from search.results import Solved, solved

Searches = dict[str, dict[tuple[str, int], Solved]]


def run(job: Job) -> dict[str, float]:
    """Returns `search_comparison/<search>/<method>/<n>/minus_<opponent>_<its method>`.

    Raises ValueError for an opponent that no input holds, or searches of different problems.
    """
    config: ComparisonConfig = job.config
    searches: Searches = {role: solved(path) for role, path in job.inputs.items()}
    for opponent in config.against:
        _check(opponent, searches)
    tables = [(opponent, _differences(opponent, searches)) for opponent in config.against]
    figures = [{"baseline": opponent.model_dump(), "differences": rows} for opponent, rows in tables]
    (job.out / "results.json").write_text(json.dumps({"tables": figures}, indent=1) + "\n")
    metrics = {
        f"search_comparison/{row['search']}/{row['method']}/{row['n']}/{_against(opponent)}": row["mean"]
        for opponent, rows in tables
        for row in rows
        if row["level"] is None
    }
    with job.track() as tracker:
        tracker.log(metrics)
    return metrics


def _against(opponent: Opponent) -> str:
    return f"minus_{opponent.search}_{opponent.method}"


def _check(opponent: Opponent, searches: Searches) -> None:
    if opponent.search not in searches:
        raise ValueError(
            f"config.against names the search '{opponent.search}', but the step's inputs are {', '.join(searches)}"
        )
    known = searches[opponent.search]
    if not any(method == opponent.method and opponent.n in (None, n) for method, n in known):
        found = ", ".join(f"{method} at n={n}" for method, n in sorted(known))
        raise ValueError(f"'{opponent.search}' has no {opponent.method} at n={opponent.n}; it has {found}")


def _differences(opponent: Opponent, searches: Searches) -> list[dict[str, Any]]:
    """Every method and n of every search that is not the opponent's own, over all problems and per level."""
    rows = []
    for role, methods in searches.items():
        for (method, n), mine in methods.items():
            size = n if opponent.n is None else opponent.n
            other = searches[opponent.search].get((opponent.method, size))
            if other is None or (role, method, n) == (opponent.search, opponent.method, size):
                continue
            for level in (None, *sorted({mine.levels[name] for name in mine.shares})):
                gained = mine.minus(other, level)
                rows.append({"search": role, "method": method, "n": n, "level": level, **asdict(gained)})
    return rows
