"""Files that a kill cannot spoil: whole or absent.

distilabel's own crash resume hangs, so each shard of prompts is one pipeline without cache, and its result is
committed to the step's scratch folder by one rename. A retry starts after the last finished shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

Row = dict[str, Any]


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file of JSON objects, one a line. Raises ValueError that names file and line of one that is none."""
    rows: list[Row] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # no JSON, or no UTF-8
                raise ValueError(f"{path}:{number}: not a row of JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a row is a JSON object, not {type(row).__name__}")
            rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write `rows`, one JSON object a line, aside; then fsync and rename."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write `text` aside, fsync it, rename it to `path`, fsync the folder."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Shards:
    """Prompts in shards of `size`, each answered once and kept in `folder`."""

    def __init__(self, folder: Path, prompts: Sequence[Any], size: int) -> None:
        folder.mkdir(exist_ok=True)
        self._prompts = prompts
        # The range is in the name: a retry with another shard size must not take a shard for a different one.
        spans = [(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)]
        self._shards = [(first, last, folder / f"{first:08d}-{last:08d}.jsonl") for first, last in spans]

    @property
    def done(self) -> int:
        """Shards finished without a gap: where a retry resumes."""
        return next((i for i, (*_, path) in enumerate(self._shards) if not path.exists()), len(self._shards))

    def __len__(self) -> int:
        return len(self._shards)

    def run(
        self,
        answer: Callable[[Sequence[Any]], list[Row]],
        finished: Callable[[int, list[Row]], None],
        enough: Callable[[list[Row]], bool] = lambda rows: False,
    ) -> list[Row]:
        """Rows of all shards in order. `answer` is called for the missing ones, `finished` after each committed.

        Ends before a shard at which `enough` says so of the rows so far.
        """
        rows: list[Row] = []
        for index, (first, last, path) in enumerate(tqdm(self._shards, desc="shards", unit="shard")):
            if enough(rows):
                break
            if path.exists():
                rows += read_jsonl(path)
                continue
            shard = answer(self._prompts[first:last])
            write_jsonl(path, shard)
            rows += shard
            finished(index, rows)
        return rows
