"""Searches held against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.stage import SEARCH_COMPARISON
from tests.jobs import make_job, run_here


def write_search(folder: Path, solved: dict[str, dict[str, list[int]]]) -> Path:
    """A search artifact's outcomes: `{"majority@4": {"id": [1, 0]}}`, one verdict a seed; levels are the id's digit."""
    folder.mkdir()
    rows = [
        {"method": run.split("@")[0], "n": int(run.split("@")[1]), "seed": seed, "id": name, "level": int(name[-1])}
        | {"correct": bool(right), "answer": "1", "generated": 1, "scored": 0}
        for run, problems in solved.items()
        for name, rights in problems.items()
        for seed, right in enumerate(rights)
    ]
    (folder / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def compare(folder: Path, against: list[dict[str, object]], **searches: Path) -> list[dict[str, object]]:
    job = make_job(SEARCH_COMPARISON, folder, {"against": against}, inputs=searches)
    run_here(SEARCH_COMPARISON, job)
    return [
        {**row, "baseline": table["baseline"]["method"]}
        for table in json.loads((job.out / "results.json").read_text())["tables"]
        for row in table["differences"]
    ]


def test_differences_are_paired_by_problem_and_averaged_over_seeds(tmp_path: Path) -> None:
    small = write_search(tmp_path / "s", {"majority@4": {"a1": [1, 1], "b1": [1, 0], "c2": [0, 0]}})
    large = write_search(tmp_path / "l", {"greedy@1": {"a1": [1], "b1": [0], "c2": [1], "d2": [1]}})
    rows = compare(tmp_path / "job", [{"search": "large"}], small=small, large=large)
    means = {row["level"]: (row["mean"], row["problems"]) for row in rows}
    assert means == {None: (pytest.approx((0 + 0.5 - 1) / 3, abs=1e-5), 3), 1: (0.25, 2), 2: (-1.0, 1)}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)  # type: ignore[operator]


def test_an_opponent_without_n_is_met_at_the_same_n(tmp_path: Path) -> None:
    verdicts = {
        "majority@2": {"a1": [0]},
        "majority@4": {"a1": [0]},
        "weighted@2": {"a1": [1]},
        "weighted@8": {"a1": [1]},
    }
    small = write_search(tmp_path / "s", verdicts)
    rows = compare(tmp_path / "job", [{"search": "small", "method": "majority", "n": None}], small=small)
    met = {(row["method"], row["n"]): row["mean"] for row in rows if row["level"] is None}
    assert met == {("weighted", 2): 1.0}


def test_an_opponent_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    small = write_search(tmp_path / "s", {"majority@2": {"a1": [1]}})
    with pytest.raises(ValueError, match="names the search 'large', but the step's inputs are small"):
        compare(tmp_path / "one", [{"search": "large"}], small=small)
    with pytest.raises(ValueError, match="'small' has no greedy at n=1; it has majority at n=2"):
        compare(tmp_path / "two", [{"search": "small"}], small=small)
    other = write_search(tmp_path / "o", {"greedy@1": {"z1": [1]}})
    with pytest.raises(ValueError, match="share no problem"):
        compare(tmp_path / "three", [{"search": "other"}], small=small, other=other)
