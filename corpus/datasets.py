"""Hub data sets through Hugging Face `datasets`, streamed: nothing but the rows in flight is held or stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from datasets import load_dataset


def stream(
    path: str, name: str | None, split: str, revision: str | None, fields: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Rows of one split in its order, with at least the columns `fields`; the library's own errors pass through.

    Raises ValueError where a column is missing.
    """
    dataset = load_dataset(path, name=name, split=split, revision=revision, streaming=True)
    for index, row in enumerate(dataset):
        for field in fields:
            if field not in row:
                near = get_close_matches(field, row, n=1, cutoff=0.0)
                raise ValueError(
                    f"{path} ({split}), row {index}: no column {field!r}, only {', '.join(map(repr, row))}; "
                    f"did you mean {near[0]!r}?"
                )
            if not isinstance(row[field], str | None):
                raise ValueError(
                    f"{path} ({split}), row {index}: {field!r} holds {type(row[field]).__name__}, not text"
                )
        yield row
