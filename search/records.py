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

    Every process of a job writes its own file in `folder` and reads those of all, also of an attempt with another
    number of processes. A line of its own that was cut short by a kill is dropped when the journal is opened again.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.places: dict[tuple[str, int, str], tuple[Path, int]] = {}
        """(run, seed, problem) -> the file that has its line, and where that starts."""
        self._folder = folder
        self._own = folder / f"problems-{rank}.jsonl"
        if self._own.exists():
            os.truncate(self._own, self._read(self._own))
        self._file = self._own.open("ab")
        self.read_others()

    def read_others(self) -> None:
        """Take in what the other processes have finished by now."""
        for path in sorted(self._folder.glob("problems-*.jsonl")):
            if path != self._own:
                self._read(path)

    def add(self, row: dict[str, Any]) -> None:
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(row, self._own, start)

    def get(self, run: str, seed: int, problem: str) -> dict[str, Any]:
        path, start = self.places[run, seed, problem]
        with path.open("rb") as file:
            file.seek(start)
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def close(self) -> None:
        self._file.close()

    def _read(self, path: Path) -> int:
        """Note the whole lines of a file; where the last of them ends."""
        whole = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._note(json.loads(line), path, whole)
                whole += len(line)
        return whole

    def _note(self, row: dict[str, Any], path: Path, start: int) -> None:
        self.places[row["run"], row["seed"], row["id"]] = path, start
