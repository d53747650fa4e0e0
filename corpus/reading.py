"""Reads a corpus artifact a row at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from corpus.writing import SHARD_DOCUMENTS


def shards(corpus: Path, part: Literal["train", "validation"]) -> list[Path]:
    """Files of one part in their order; empty where the corpus has none."""
    return sorted((corpus / part).glob("*.jsonl"))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file. Raises ValueError naming file and line if one is not an object."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: {line[:80]!r} is no JSON object")
            yield row


def numbered_rows(
    corpus: Path, part: Literal["train", "validation"], first: int, end: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of the documents `first` to `end` - 1 of one part; lines before `first` are not parsed."""
    number = 0
    for path in shards(corpus, part):
        if first >= number + SHARD_DOCUMENTS:  # every shard but the last is full
            number += SHARD_DOCUMENTS
            continue
        with path.open(encoding="utf-8") as file:
            for line in file:
                if number >= end:
                    return
                if number >= first:
                    yield number, json.loads(line)
                number += 1


def texts(corpus: Path, part: Literal["train", "validation"]) -> Iterator[str]:
    """Texts of the documents of one part, in the corpus' order."""
    for path in shards(corpus, part):
        for row in rows(path):
            yield row["text"]
