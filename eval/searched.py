"""Test-time search as an evaluated model: a `search` artifact beside the models, on the same problems.

Every method at every n is a model of its own (`think/beam@16`) whose score stands beside the tokens that it spent. The
samples that all votes share give pass@k, maj@k and weighted@k for each k up to their number (`think/samples`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from acorn.problems import WordProblem, parse_number
from eval.results import Metric, Outcome
from eval.samples import by_metric
from eval.statistics import spread
from eval.votes import at_k, sizes, vote

OUTCOMES, COMPLETIONS, SAMPLES = "outcomes.jsonl", "completions.jsonl", "samples"


def is_search(folder: Path) -> bool:
    return (folder / OUTCOMES).exists()


def searched_models(role: str, folder: Path, problems: Sequence[WordProblem], seed: int) -> dict[str, Outcome]:
    """Model -> its outcome of `acorn:problems`, over those of `problems` that were searched; seeds are averaged.

    Raises ValueError if none of them was.
    """
    wanted = {problem["id"]: problem["answer"] for problem in problems}
    runs: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows(folder / OUTCOMES):
        if row["id"] in wanted:
            runs[f"{role}/{row['method']}@{row['n']}"][row["id"]].append(row)
    if not runs:
        raise ValueError(
            f"the search under role '{role}' asked none of this step's problems: give both the same corpus, and both "
            "the same problems_per_level and seed (the search's problem_seed), or this step all problems"
        )
    found = {name: _outcome([_searched(wanted, rows) for rows in items.values()], seed) for name, items in runs.items()}
    votes = list(_votes(folder, wanted))
    return found | ({f"{role}/{SAMPLES}": _outcome(votes, seed)} if votes else {})


def _searched(gold: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One problem under one method: its mean over the seeds."""
    first = rows[0]
    return {
        "id": first["id"],
        "level": first["level"],
        "prediction": first["answer"],
        "gold": gold[first["id"]],
        "correct": _share([bool(row["correct"]) for row in rows]),
        "metrics": {
            "tokens": fmean(row["generated"] + row["scored"] for row in rows),
            "tokens_generated": fmean(row["generated"] for row in rows),
        },
    }


def _share(rights: Sequence[bool]) -> bool | float:
    return rights[0] if len(rights) == 1 else fmean(rights)


def _votes(folder: Path, gold: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """pass@k, maj@k and weighted@k of each problem over the shared samples."""
    file = folder / COMPLETIONS
    problems: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _rows(file) if file.exists() else ():
        if row["run"] == SAMPLES and row["id"] in gold:
            problems[row["id"]].append(row)
    for identity, rows in problems.items():
        seeds = [_voted(row["candidates"]) for row in rows]
        figures = {name: fmean(seed[name] for seed in seeds) for name in seeds[0]}
        share = fmean(fmean(bool(one["correct"]) for one in row["candidates"]) for row in rows)
        yield {"id": identity, "level": rows[0]["level"], "gold": gold[identity], "correct": share, "metrics": figures}


def _voted(candidates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of one seed; equal in value is equal, and only a finished solution with an answer has a vote."""
    answers = [_value(one["answer"]) if one["finished"] and one["answer"] is not None else None for one in candidates]
    rights = [bool(one["correct"]) for one in candidates]
    weights = [float(one.get("weight", one["score"])) for one in candidates]
    found: dict[str, float] = {}
    for k in sizes(len(candidates)):
        found |= at_k(answers, rights, k) | {f"weighted@{k}": vote(answers[:k], rights[:k], weights[:k])}
    return found


def _value(answer: str) -> Any:
    try:
        return parse_number(answer)
    except ValueError:
        return answer


def _outcome(samples: list[dict[str, Any]], seed: int) -> Outcome:
    metrics = {}
    for name, table in sorted(by_metric(samples).items(), key=lambda entry: _order(entry[0])):
        values = [part[0] for part in table.values()]
        better = not name.startswith("tokens")
        metrics[name] = Metric.of(fmean(values), spread(np.mean, values, seed), len(values), better)
    return Outcome(metrics, samples)


def _order(name: str) -> tuple[str, int]:
    """pass@2 before pass@16."""
    head, _, size = name.partition("@")
    return head, int(size or 0)


def _rows(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
