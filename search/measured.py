"""A search artifact as tables: what each option did on each problem, and what a short probe of it shows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acorn.answers import Answers
from search.records import SAMPLES, read
from search.sampling import VOTES
from search.tree import Candidate
from search.votes import vote_entropy

Array = NDArray[np.float64]

FEATURES = ("constant", "mean_score", "best_score", "vote_entropy")
"""Of the probe's samples: scores as aggregated by the search, unfinished samples at 0; entropy of the answers, 0..1."""
_MUST_AGREE = ("format", "system_prompt", "sampling", "step_delimiter", "max_tokens", "max_step_tokens", "aggregation")


@dataclass(frozen=True)
class Measured:
    """One row per problem and seed, one column per option."""

    folder: Path
    protocol: dict[str, Any]
    problems: tuple[str, ...]
    options: tuple[tuple[str, int], ...]
    correct: Array
    """`[rows, options]`, 0 or 1."""
    tokens: Array
    """`[rows, options]`: what the option cost by itself."""
    probed: Array
    """`[rows, options]`: the same with the probe before it; a vote over samples goes on from the probe's."""
    features: Array
    """`[rows, FEATURES]`."""
    rate: Array
    """`[rows]`: share of right samples, of all there are."""

    def rows(self, chosen: NDArray[np.bool_]) -> Measured:
        """The rows where `chosen` `[rows]` is true."""
        tables = ("correct", "tokens", "probed", "features", "rate")
        problems = tuple(name for name, kept in zip(self.problems, chosen, strict=True) if kept)
        return replace(self, problems=problems, **{name: getattr(self, name)[chosen] for name in tables})

    def by_problem(self, values: Array) -> list[float]:
        """Mean over the seeds of each problem."""
        found: dict[str, list[float]] = defaultdict(list)
        for problem, value in zip(self.problems, values, strict=True):
            found[problem].append(float(value))
        return [fmean(own) for own in found.values()]


def load(folder: Path, probe: int) -> Measured:
    """Tables of the search artifact in `folder`. Raises ValueError where it has no `probe` scored samples."""
    protocol = json.loads((folder / "results.json").read_text())["protocol"]
    votes = {row["label"] or row["name"]: row["name"] for row in protocol["methods"] if row["name"] in VOTES}
    with Answers() as answers:
        samples = {
            (row["seed"], row["id"]): _Probe(folder, row["candidates"], probe, answers)
            for row in read(folder / "completions.jsonl")
            if row["run"] == SAMPLES
        }
    if not samples:
        raise ValueError(
            f"{folder} has no sampling to take a probe from: add majority, best_of_n or weighted to the methods of the "
            "search"
        )
    rows: dict[tuple[int, str], dict[tuple[str, int], Any]] = defaultdict(dict)
    for row in read(folder / "outcomes.jsonl"):
        rows[row["seed"], row["id"]][row["method"], row["n"]] = row
    options = tuple(next(iter(rows.values())))
    correct = [[float(own[option]["correct"]) for option in options] for own in rows.values()]
    tokens = [[own[option]["generated"] + own[option]["scored"] for option in options] for own in rows.values()]
    probed = [[samples[key].cost(own[option], votes.get(option[0])) for option in options] for key, own in rows.items()]
    return Measured(
        folder,
        protocol,
        tuple(problem for _, problem in rows),
        options,
        np.array(correct),
        np.array(tokens, dtype=np.float64),
        np.array(probed, dtype=np.float64),
        np.array([samples[key].features for key in rows]),
        np.array([samples[key].rate for key in rows]),
    )


class _Probe:
    """The first samples of one problem, and what they cost."""

    def __init__(self, folder: Path, rows: Sequence[dict[str, Any]], size: int, answers: Answers) -> None:
        first = rows[:size]
        if len(first) < size:
            raise ValueError(f"{folder} has {len(rows)} samples a problem, a probe of {size} needs more: lower probe")
        if not any(row["step_scores"] for row in rows):
            raise ValueError(f"the samples in {folder} have no scores: give the search a `prm`")
        scores = [row["score"] if row["finished"] else 0.0 for row in first]
        entropy = vote_entropy([_candidate(row) for row in first], answers.same)
        self.features = [1.0, fmean(scores), max(scores), entropy]
        self.rate = fmean(float(row["correct"]) for row in rows)
        self._generated = sum(row["generated"] for row in first)
        self._scored = sum(row["scored"] for row in first)

    def cost(self, row: dict[str, Any], vote: str | None) -> float:
        """Tokens of the probe and then the option of `row`; `vote`: which vote over samples it is, if it is one."""
        if vote is None:
            return float(self._generated + self._scored + row["generated"] + row["scored"])
        return float(max(self._generated, row["generated"]) + max(self._scored, row["scored"]))


def _candidate(row: dict[str, Any]) -> Candidate:
    return Candidate(
        node=row["node"],
        text=row["text"],
        answer=row["answer"],
        finished=row["finished"],
        step_scores=row["step_scores"],
        score=row["score"],
        generated=row["generated"],
        scored=row["scored"],
    )


def refuse_misfit(fit: Measured, held_out: Measured) -> None:
    """Raise ValueError where what was fitted says nothing about what it is applied to."""
    if shared := set(fit.problems) & set(held_out.problems):
        raise ValueError(
            f"fit and apply share {len(shared)} problems ({min(shared)}, ...): a policy must be shown on problems it "
            "was not fitted on; search the train split for fit"
        )
    for name in _MUST_AGREE:
        if fit.protocol[name] != held_out.protocol[name]:
            raise ValueError(
                f"fit was searched with {name}={fit.protocol[name]!r}, apply with {held_out.protocol[name]!r}: search "
                "both alike"
            )
    if fit.options != held_out.options:
        odd = sorted(set(fit.options) ^ set(held_out.options)) or "the order"
        raise ValueError(f"fit and apply differ in their methods ({odd}): search both with the same list")
