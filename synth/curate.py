"""Which problems may be asked, and which answers become rows: duplicates and test questions are kept out.

Pure functions over rows; every refusal has a reason, so nothing disappears.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from acorn.ngrams import TestSets, terms
from acorn.problems import WordProblem
from synth.held_out import too_close
from synth.shards import Row, read_jsonl


def normalise(text: str) -> str:
    """Words, numbers and operators in lower case with single spaces: what equal texts share."""
    return " ".join(terms(text))


def load_problems(corpus: Path, name: str) -> list[WordProblem]:
    """Rows of `problems/<name>.jsonl`. Raises FileNotFoundError without them, ValueError on a repeated id."""
    path = corpus / "problems" / f"{name}.jsonl"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the corpus has no word problems. Use a corpus made by the stage `problems`"
        )
    rows = read_jsonl(path)
    twice = [name for name, times in Counter(row["id"] for row in rows).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: the id {twice[0]!r} occurs twice ({len(twice)} such ids): ids must be unique")
    return rows  # type: ignore[return-value]


def select(
    problems: Sequence[WordProblem], tests: TestSets, count: int | None, seed: int, skip: int = 0
) -> tuple[list[WordProblem], list[tuple[WordProblem, str]]]:
    """`count` problems drawn by `seed`, behind the first `skip`, and those refused with the reason, in a fixed order.

    Refused are a question asked before (`duplicate_question`) and one too close to a test set
    (`contaminated`, `contaminated: <set>`).
    Fewer than `count` are returned only if the corpus has no more.
    """
    order = list(range(len(problems)))
    random.Random(f"problems:{seed}").shuffle(order)
    kept: list[WordProblem] = []
    refused: list[tuple[WordProblem, str]] = []
    seen: set[str] = set()
    for problem in (problems[index] for index in order):
        if count is not None and len(kept) == skip + count:
            break
        text = normalise(problem["question"])
        if text in seen:
            refused.append((problem, "duplicate_question"))
        elif reason := too_close([problem["question"]], tests):
            refused.append((problem, reason))
        else:
            kept.append(problem)
        seen.add(text)
    return kept[skip:], refused


def by_id(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row["id"]))


def counts(values: Iterable[Any]) -> dict[str, int]:
    """How often each value occurs, by name."""
    return dict(sorted(Counter(str(value) for value in values).items()))


def rates(outcomes: Iterable[tuple[Any, bool]]) -> dict[str, float]:
    """Share of True per key, to 6 digits."""
    totals: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for key, outcome in outcomes:
        totals[str(key)] += 1
        passed[str(key)] += outcome
    return {key: round(passed[key] / totals[key], 6) for key in sorted(totals)}
