"""The rows of a search artifact, and reading them back.

`completions.jsonl` and `trees.jsonl` have a row for each run, seed and problem; a run is one search, or one sampling
that several votes share. `outcomes.jsonl` has what each method made of it, at each n: the file that figures are
computed from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

from search.tree import Candidate, Node, Outcome

SAMPLES = "samples"
"""Name of the run that all votes share."""


class OutcomeRow(TypedDict):
    """A row of `outcomes.jsonl`."""

    method: str
    n: int
    seed: int
    id: str
    level: int
    answer: str | None
    correct: bool
    generated: int
    """Tokens that the method had drawn for this problem."""
    scored: int


def outcome_row(outcome: Outcome, method: str, n: int, where: dict[str, Any], right: bool) -> OutcomeRow:
    return OutcomeRow(
        method=method,
        n=n,
        seed=where["seed"],
        id=where["id"],
        level=where["level"],
        answer=outcome.answer,
        correct=right,
        generated=outcome.spent.generated,
        scored=outcome.spent.scored,
    )


def candidate_row(candidate: Candidate, right: bool) -> dict[str, Any]:
    row = {
        "text": candidate.text,
        "answer": candidate.answer,
        "correct": right,
        "finished": candidate.finished,
        "score": round(candidate.score, 6),
        "step_scores": [round(score, 6) for score in candidate.step_scores],
        "generated": candidate.generated,
        "scored": candidate.scored,
        "node": candidate.node,
    }
    return row if candidate.weight is None else row | {"weight": round(candidate.weight, 6)}


def node_row(node: Node) -> dict[str, Any]:
    row: dict[str, Any] = {"parent": node.parent, "ids": node.ids, "status": node.status}
    for name in ("score", "ahead"):
        if (value := getattr(node, name)) is not None:
            row[name] = round(value, 6)
    return row


def read(path: Path) -> Iterator[Any]:
    """Rows of a JSONL file, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


class Lines:
    """A JSONL file that is written row by row."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def add(self, row: Any) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def write(path: Path, rows: Iterable[Any]) -> None:
    with Lines(path) as lines:
        for row in rows:
            lines.add(row)


class Journal:
    """Finished problems of a job, one line each, on disk before the next is counted as finished.

    A line cut short by a kill is dropped when the journal is opened again.
    """

    def __init__(self, path: Path) -> None:
        self.offsets: dict[tuple[str, int, str], int] = {}
        """(run, seed, problem) -> where its line starts."""
        whole = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._note(json.loads(line), whole)
                    whole += len(line)
            os.truncate(path, whole)
        self._file = path.open("a+b")

    def add(self, row: dict[str, Any]) -> None:
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(row, start)

    def get(self, run: str, seed: int, problem: str) -> dict[str, Any]:
        self._file.seek(self.offsets[run, seed, problem])
        row: dict[str, Any] = json.loads(self._file.readline())
        return row

    def close(self) -> None:
        self._file.close()

    def _note(self, row: dict[str, Any], start: int) -> None:
        self.offsets[row["run"], row["seed"], row["id"]] = start
