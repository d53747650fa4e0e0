"""The stage `search` on a real model and a real verifier, at toy size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from acorn.launch import Processes
from acorn.stage import Job
from search.check import check
from search.config import SearchConfig, SearchExecution
from search.records import read
from search.show import solve
from search.stage import SEARCH, SEARCH_COMPARISON
from tests.jobs import make_job, run_here

CONFIG = {
    "problems": 3,
    "seeds": [0, 1],
    "max_tokens": 24,
    "max_step_tokens": 8,
    "methods": [
        {"name": "greedy"},
        {"name": "majority", "n": 4},
        {"name": "weighted", "n": 3},
        {"name": "beam", "n": 4},
    ],
}
FILES = ["completions.jsonl", "outcomes.jsonl", "results.json", "trees.jsonl"]


def job(folder: Path, inputs: Mapping[str, Path], batch_size: int, **config: Any) -> Job:
    return make_job(SEARCH, folder, CONFIG | config, {"device": "cpu", "batch_size": batch_size}, inputs)


@pytest.fixture(scope="module")
def inputs(tiny_corpus: Path, tiny_model: Path, tiny_prm: Path) -> dict[str, Path]:
    return {"corpus": tiny_corpus, "model": tiny_model, "prm": tiny_prm}


@pytest.fixture(scope="module")
def searched(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    done = job(tmp_path_factory.mktemp("searched"), inputs, 2)
    metrics = run_here(SEARCH, done)
    assert metrics["search/beam/4/tokens"] > 0
    assert 0 <= metrics["search/pass/4/accuracy"] <= 1
    return done


def published(done: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(done.out.iterdir()) if path.is_file()}


def test_the_artifact_holds_what_was_asked(searched: Job) -> None:
    assert sorted(published(searched)) == FILES
    rows = list(read(searched.out / "outcomes.jsonl"))
    found = {(row["method"], row["n"]) for row in rows}
    assert found == {
        ("greedy", 1),
        *(("majority", n) for n in (1, 2, 4)),
        *(("weighted", n) for n in (1, 2, 3)),
        ("beam", 4),
    }
    assert len(rows) == len(found) * 2 * 3
    for row in rows:
        assert row["generated"] > 0
        assert (row["scored"] > 0) == (row["method"] in ("weighted", "beam"))
    completions = list(read(searched.out / "completions.jsonl"))
    for row, grown in zip(completions, read(searched.out / "trees.jsonl"), strict=True):
        assert sum(len(node["ids"]) for node in grown["nodes"]) == row["spent"]["generated"]
        assert all(candidate["generated"] <= 24 for candidate in row["candidates"])
    results = json.loads((searched.out / "results.json").read_text())
    assert all(row["low"] <= row["mean"] <= row["high"] and row["problems"] == 3 for row in _whole(searched))
    assert [row["k"] for row in results["pass"] if row["level"] is None and row["seed"] is None] == [1, 2, 3, 4]


def test_nothing_depends_on_how_many_problems_advance_together(
    searched: Job, inputs: dict[str, Path], tmp_path: Path
) -> None:
    other = job(tmp_path, inputs, 5)
    run_here(SEARCH, other)
    assert published(other) == published(searched)


def test_a_killed_search_goes_on_after_the_last_finished_problem(
    searched: Job, inputs: dict[str, Path], tmp_path: Path
) -> None:
    again = job(tmp_path, inputs, 2)
    lines = (searched.scratch / "problems-0.jsonl").read_bytes().splitlines(keepends=True)
    told = json.loads(lines[0])
    told["candidates"][0]["text"] = "from the first attempt"
    first = json.dumps(told, ensure_ascii=False).encode() + b"\n"
    (again.scratch / "problems-0.jsonl").write_bytes(first + b"".join(lines[1:7]) + lines[7][:40])
    run_here(SEARCH, again)
    before, after = published(searched), published(again)
    assert after["completions.jsonl"].count(b"from the first attempt") == 1
    assert [after[name] for name in FILES[1:]] == [before[name] for name in FILES[1:]]
    changed = [
        a != b for a, b in zip(*(files["completions.jsonl"].splitlines() for files in (before, after)), strict=True)
    ]
    assert changed.count(True) == 1


def test_two_processes_share_the_problems_and_leave_the_same_bytes(
    searched: Job, inputs: dict[str, Path], tmp_path: Path
) -> None:
    both = make_job(SEARCH, tmp_path, CONFIG, {"device": "cpu", "processes": 2}, inputs)
    # One problem was finished by an attempt with more processes.
    line = (searched.scratch / "problems-0.jsonl").read_bytes().splitlines(keepends=True)[0]
    (both.scratch / "problems-5.jsonl").write_bytes(line)
    description = {field.name: getattr(both, field.name) for field in fields(both)}
    description |= {name: getattr(both, name).model_dump(mode="json") for name in ("config", "execution")}
    Processes(tmp_path).run(SEARCH, "search", both.execution, json.loads(json.dumps(description, default=str)))
    shares = [len((both.scratch / f"problems-{rank}.jsonl").read_bytes().splitlines()) for rank in range(2)]
    assert min(shares) > 1 and sum(shares) + 1 == len(list(read(searched.scratch / "problems-0.jsonl")))
    after, before = published(both), published(searched)
    assert {name: after[name] for name in FILES} == before


def test_without_a_prm_only_votes_are_taken(inputs: dict[str, Path], tmp_path: Path) -> None:
    without = {role: path for role, path in inputs.items() if role != "prm"}
    with pytest.raises(ValueError, match="weighted needs a process reward model"):
        run_here(SEARCH, job(tmp_path / "scored", without, 4))
    done = job(tmp_path, without, 4, methods=[{"name": "greedy"}, {"name": "adaptive", "n": 3}], format="plain")
    assert run_here(SEARCH, done)["search/adaptive/3/tokens"] > 0


def test_a_prm_of_other_steps_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained on steps that end with"):
        run_here(SEARCH, job(tmp_path, inputs, 4, step_delimiter="\n"))


def test_an_impossible_budget_is_a_fault_of_the_recipe() -> None:
    config = SearchConfig.model_validate(CONFIG | {"budget": 40})
    [problem] = check(config, SearchExecution())
    assert problem.field == "budget" and "raise the budget to at least 48" in problem.message
    assert check(SearchConfig.model_validate(CONFIG | {"budget": 48}), SearchExecution()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 0]}, "repeats one"),
        ({"problems_per_level": 2}, "keep one"),
        ({"methods": [{"name": "beam", "n": 4}, {"name": "beam", "n": 8}]}, "own label"),
        ({"methods": [{"name": "beam", "n": 6}]}, "no multiple of width"),
        ({"methods": [{"name": "greedy", "n": 4}]}, "leave n out"),
        ({"methods": [{"name": "bem"}]}, "does not match any of the expected tags"),
        ({"methods": [{"name": "beam", "wdth": 2}]}, "Extra inputs"),
    ],
)
def test_a_config_that_means_nothing_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig.model_validate(CONFIG | change)


def test_two_searches_are_compared_problem_by_problem(searched: Job, tmp_path: Path) -> None:
    against = {"against": [{"search": "small", "method": "greedy"}]}
    inputs = {"small": searched.out, "large": searched.out}
    done = make_job(SEARCH_COMPARISON, tmp_path, against, inputs=inputs)
    metrics = run_here(SEARCH_COMPARISON, done)
    assert metrics["search_comparison/large/greedy/1/minus_small_greedy"] == 0
    [table] = json.loads((done.out / "results.json").read_text())["tables"]
    mean = {(row["method"], row["n"]): row["mean"] for row in _whole(searched)}
    for row in table["differences"]:
        if row["level"] is None:
            assert row["mean"] == pytest.approx(mean[row["method"], row["n"]] - mean["greedy", 1])
            assert row["low"] <= row["mean"] <= row["high"] and row["problems"] == 3


def _whole(done: Job) -> list[dict[str, Any]]:
    results = json.loads((done.out / "results.json").read_text())
    return [row for row in results["methods"] if row["level"] is None and row["seed"] is None]


def test_one_prompt_is_solved_and_its_tree_shown(tiny_model: Path, tiny_prm: Path, tmp_path: Path) -> None:
    with (tmp_path / "screen").open("w") as file:
        console = Console(file=file, width=100)
        outcome = solve(
            *(tiny_model, tiny_prm, "Mia has 3 cups.", "dvts", 200, True),
            options={"n": 4, "width": 2},
            max_tokens=16,
            max_step_tokens=4,
            console=console,
        )
    assert 0 < outcome.spent.total <= 200
    screen = (tmp_path / "screen").read_text()
    assert "Mia has 3 cups." in screen and f"{outcome.spent.generated} tokens generated" in screen
    with pytest.raises(ValueError, match="did you mean dvts"):
        solve(tiny_model, tiny_prm, "x", "dvt", None)
    with pytest.raises(ValueError, match=r"dvts needs a process reward model.*--prm"):
        solve(tmp_path / "no model, which would be noticed later", None, "x", "dvts", None)
