"""Reads a corpus artifact as datatrove documents, and writes what its filters keep and remove.

Documents are numbered through, validation before train, so that of two duplicates the held-out one is the first.
A task gets a range of numbers: whatever the number of tasks, their outputs one after the other are the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter

from corpus.reading import numbered_rows, rows
from corpus.sifting import PARTS, document_id

BLOCK = 32
"""Tasks begin at multiples of it; the documents of one block are scored as one batch (filters.py)."""


class ReadDocuments(PipelineStep):  # type: ignore[misc]
    """Documents of the task's range that the step judges; `id` as in `corpus.sifting`, `metadata.position` from 0."""

    type = "📖 - READER"
    name = "acorn corpus"

    def __init__(self, corpus: Path, counts: dict[str, int], parts: tuple[str, ...], sources: tuple[str, ...] | None):
        """`counts`: documents of each part. Raises nothing; a corpus that does not match fails while it is sifted."""
        super().__init__()
        self.corpus, self.counts, self.parts, self.sources = str(corpus), counts, parts, sources

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        start, end = task_range(sum(self.counts.values()), rank, world_size)
        offset = 0
        for part in PARTS:
            size = self.counts[part]
            first, last = max(start - offset, 0), min(end - offset, size)
            if part in self.parts and first < last:
                for index, row in numbered_rows(Path(self.corpus), part, first, last):
                    if self.sources is None or row["source"] in self.sources:
                        beside = {name: value for name, value in row.items() if name != "text"}
                        metadata = {**beside, "position": offset + index}
                        yield Document(text=row["text"], id=document_id(part, index), metadata=metadata)
            offset += size


def task_range(documents: int, rank: int, tasks: int) -> tuple[int, int]:
    """Numbers [start, end) of task `rank`, cut at whole blocks."""
    blocks = -(-documents // BLOCK)
    return (blocks * rank // tasks) * BLOCK, min((blocks * (rank + 1) // tasks) * BLOCK, documents)


def writer(folder: Path) -> JsonlWriter:
    """One file of plain JSON lines a task: `id`, `text`, and the metadata beside them."""
    return JsonlWriter(str(folder), output_filename="${rank}.jsonl", compression=None, expand_metadata=True)


def written(folder: Path) -> Iterator[dict[str, Any]]:
    """What the tasks wrote to `folder`, in the order of the documents; nothing where no task wrote anything."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from rows(path)
