"""A corpus again, without some of its documents: what `filter`, `dedup` and `decontaminate` share.

Documents are numbered through, validation before train. What is removed goes to `removed.jsonl` with its id and the
reason; the rest keeps its order. A document that a step should have judged and did not is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from acorn.stage import Job
from corpus.reading import numbered_rows, rows
from corpus.writing import CorpusWriter, Part, to_line

Row = dict[str, Any]
PARTS: tuple[Part, Part] = ("validation", "train")


class Removed(NamedTuple):
    """A document that goes, by its number; `why` has `reason` and what else is known."""

    position: int
    why: Row


class Kept(NamedTuple):
    """A document that stays, changed or with something noted: `row` is written instead of the input's."""

    position: int
    row: Row


def document_id(part: str, index: int) -> str:
    """Names a document of a corpus: its part, and its number in it from 0."""
    return f"{part}-{index:09d}"


def document_counts(corpus: Path) -> dict[str, int]:
    """Documents of each part, by `stats.json`."""
    stats = json.loads((corpus / "stats.json").read_text(encoding="utf-8"))
    return {part: sum(stats["documents"].get(part, {}).values()) for part in PARTS}


def refuse_unknown_sources(corpus: Path, sources: tuple[str, ...] | None) -> None:
    """Raise ValueError where a step is told to judge documents of a source that the corpus does not have."""
    stats = json.loads((corpus / "stats.json").read_text(encoding="utf-8"))
    known = {source for part in PARTS for source in stats["documents"].get(part, {})}
    if missing := sorted(set(sources or ()) - known):
        raise ValueError(f"sources: the corpus has none called {missing[0]!r}; it has {', '.join(sorted(known))}")


def sift(
    job: Job,
    removed: Iterable[Removed],
    kept: Iterable[Kept] = (),
    accounted: Callable[[Row], bool] = lambda row: False,
    **notes: Any,
) -> dict[str, float]:
    """Write the corpus artifact without `removed`, both streams in the order of the documents; returns the metrics.

    `accounted`: documents that must be in one of the streams. Problems are copied as they are; `notes` go to
    `stats.json`. Raises ValueError where no train document is left, RuntimeError where a stream does not fit it.
    """
    corpus = job.inputs["corpus"]
    going, staying = _Stream(removed, "removed"), _Stream(kept, "kept")
    reasons: Counter[str] = Counter()
    with CorpusWriter(job.out) as writer, (job.out / "removed.jsonl").open("w", encoding="utf-8") as file:
        for part, rows_of_part in ((part, _numbered(corpus, part)) for part in PARTS):
            for position, index, row in rows_of_part:
                if why := going.take(position):
                    file.write(to_line({"id": document_id(part, index), **row, **why.why}))
                    reasons[why.why["reason"]] += 1
                    continue
                new = staying.take(position)
                if new is None and accounted(row):
                    raise RuntimeError(f"{document_id(part, index)} was neither kept nor removed")
                writer.row(part, new.row if new else row)
        for name in ("train", "test"):
            path = corpus / "problems" / f"{name}.jsonl"
            for problem in rows(path) if path.exists() else ():
                writer.problem(name, problem)  # type: ignore[arg-type]
        going.refuse_rest()
        staying.refuse_rest()
        if not writer.documents["train"].total():
            raise ValueError(f"{job.step}: no train document is left: {_listed(reasons)}; see the step's options")
        writer.notes |= {"left_out": dict(sorted(reasons.items())), **notes}
    by_reason = {f"{job.stage}/removed_{reason}": float(count) for reason, count in sorted(reasons.items())}
    return writer.metrics() | {f"{job.stage}/removed": float(reasons.total())} | by_reason


def _numbered(corpus: Path, part: Part) -> Iterator[tuple[int, int, Row]]:
    """(number over all parts, number in the part, row) of each document of one part."""
    counts = document_counts(corpus)
    offset = counts["validation"] if part == "train" else 0
    for index, row in numbered_rows(corpus, part, 0, counts[part]):
        yield offset + index, index, row


class _Stream:
    """Items by position, taken one after the other."""

    def __init__(self, items: Iterable[Any], name: str) -> None:
        self._items, self._name, self._last = iter(items), name, -1
        self._next = self._draw()

    def take(self, position: int) -> Any:
        """The item of `position`, or None where it has none."""
        if self._next is None or self._next.position != position:
            return None
        item, self._next = self._next, self._draw()
        return item

    def refuse_rest(self) -> None:
        if self._next is not None:
            raise RuntimeError(f"document {self._next.position} was {self._name} but is not in the corpus")

    def _draw(self) -> Any:
        item = next(self._items, None)
        if item is not None:
            if item.position <= self._last:
                raise RuntimeError(f"document {item.position} was {self._name} after {self._last}")
            self._last = item.position
        return item


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "the corpus had none"
