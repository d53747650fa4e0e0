"""Hub data sets through Hugging Face `datasets`, streamed: only the rows in flight are held.

With a folder to keep them in, rows are put there in batches, each with the state of the stream behind it
(`IterableDataset.state_dict`). A killed read starts again with what is there and goes on behind the last whole batch,
without fetching the shards before it again. That costs disk for the columns asked for, for the time of the step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset

BATCH_ROWS = 10_000


def stream(
    path: str,
    name: str | None,
    split: str,
    revision: str | None,
    fields: Sequence[str],
    kept: Path | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[dict[str, Any]]:
    """Columns `fields` of one split's rows in its order; the library's own errors pass through.

    Raises ValueError where a column is missing or holds something else than text.
    """
    dataset = load_dataset(path, name=name, split=split, revision=revision, streaming=True)
    if kept is None:
        yield from _checked(dataset, f"{path} ({split})", fields, 0)
        return
    asked = json.dumps([path, name, split, revision, list(fields)])
    folder = kept / f"rows-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    count, ended = 0, False
    for file in sorted(folder.glob("*.jsonl")):
        *rows, behind = file.read_text(encoding="utf-8").split("\n")[:-1]
        yield from map(json.loads, rows)
        count, (state, ended) = count + len(rows), json.loads(behind)
        dataset.load_state_dict(state)
    rest = _checked(dataset, f"{path} ({split})", fields, count)
    while not ended:
        batch, first = list(islice(rest, batch_rows)), count
        count, ended = count + len(batch), len(batch) < batch_rows
        lines = [json.dumps(row) for row in batch] + [json.dumps([dataset.state_dict(), ended])]
        # By the first row: where the last batch was full, an empty one closes the stream and must not take its name.
        _write_whole(folder / f"{first:012d}.jsonl", "".join(f"{line}\n" for line in lines))
        yield from batch


def _checked(dataset: IterableDataset, where: str, fields: Sequence[str], first: int) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(dataset, start=first):
        for field in fields:
            if field not in row:
                near = get_close_matches(field, row, n=1, cutoff=0.0)
                raise ValueError(
                    f"{where}, row {index}: no column {field!r}, only {', '.join(map(repr, row))}; "
                    f"did you mean {near[0]!r}?"
                )
            if not isinstance(row[field], str | None):
                raise ValueError(f"{where}, row {index}: {field!r} holds {type(row[field]).__name__}, not text")
        yield {field: row[field] for field in fields}


def _write_whole(path: Path, text: str) -> None:
    """The file is there as a whole or not at all."""
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
