"""Writes a corpus artifact: documents in shards, problems, and `stats.json` with what was written.

Rows are appended one at a time, so memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from acorn.problems import WordProblem

SHARD_DOCUMENTS = 100_000
"""Documents a file: 22 MB of the procedural world, small enough to open in an editor."""

Part = Literal["train", "validation"]
ProblemPart = Literal["train", "test"]


_BREAKS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})
"""Legal inside JSON text, but `str.splitlines` would cut a row in two there (a GSM8K question has one)."""


def to_line(row: Any) -> str:
    """One line of a JSON lines file; readable text stays readable."""
    return json.dumps(row, ensure_ascii=False).translate(_BREAKS) + "\n"


class CorpusWriter:
    """Use as a context manager; `stats.json` is written on leaving without an error."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._files: dict[Part, TextIO] = {}
        self._problem_files: dict[ProblemPart, TextIO] = {}
        self.documents: dict[Part, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self.characters: dict[Part, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self.problems: dict[ProblemPart, Counter[int]] = {"train": Counter(), "test": Counter()}
        self.notes: dict[str, Any] = {}
        """Further figures for `stats.json`."""

    def document(self, part: Part, text: str, source: str) -> None:
        self.row(part, {"text": text, "source": source})

    def row(self, part: Part, row: Mapping[str, Any]) -> None:
        """A document with whatever stands beside its `text` and `source`."""
        count = self.documents[part].total()
        if count % SHARD_DOCUMENTS == 0:
            self._open_shard(part, count // SHARD_DOCUMENTS)
        self._files[part].write(to_line(row))
        self.documents[part][row["source"]] += 1
        self.characters[part][row["source"]] += len(row["text"])

    def problem(self, part: ProblemPart, row: WordProblem) -> None:
        if part not in self._problem_files:
            path = self._out / "problems" / f"{part}.jsonl"
            path.parent.mkdir(exist_ok=True)
            self._problem_files[part] = path.open("w", encoding="utf-8")
        self._problem_files[part].write(to_line(row))
        self.problems[part][row["level"]] += 1

    def metrics(self) -> dict[str, float]:
        """Figures for the step's final metrics."""
        figures: dict[str, float] = {}
        for part in self.documents:
            figures[f"corpus/{part}_documents"] = self.documents[part].total()
            figures[f"corpus/{part}_characters"] = self.characters[part].total()
        for kind, levels in self.problems.items():
            figures[f"corpus/problems_{kind}"] = levels.total()
        return figures

    def _open_shard(self, part: Part, index: int) -> None:
        if part in self._files:
            self._files[part].close()
        (self._out / part).mkdir(exist_ok=True)
        self._files[part] = (self._out / part / f"{index:05d}.jsonl").open("w", encoding="utf-8")

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for file in (*self._files.values(), *self._problem_files.values()):
            file.close()
        if kind is None:
            stats = {
                "documents": _ordered(self.documents),
                "characters": _ordered(self.characters),
                "problems": _ordered(self.problems),
                **self.notes,
            }
            (self._out / "stats.json").write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")


def _ordered(parts: Mapping[Any, Counter[Any]]) -> dict[str, dict[str, int]]:
    return {part: {str(key): counter[key] for key in sorted(counter)} for part, counter in parts.items()}
