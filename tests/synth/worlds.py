"""Small hand-written corpora, and readers of what a stage left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def problem(number: int, **changed: Any) -> dict[str, Any]:
    """A right problem of one step, different in words and sum for each `number`."""
    things = ("apples", "books", "coins", "shells", "pens", "cups", "stamps", "keys", "cards", "stones")[number % 10]
    total = 20 + 3 * number
    return {
        "id": f"train-{number:03d}",
        "question": f"Ida number {number} owns {20 + number} {things} and finds {2 * number} more. How many are there?",
        "solution": f"Ida finds {2 * number}: {20 + number}+{2 * number}={total}\n\n#### {total}",
        "answer": str(total),
        "level": 1 + number % 3,
    } | changed


def write_corpus(folder: Path, train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]] = ()) -> Path:
    (folder / "problems").mkdir(parents=True)
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "problems" / f"{name}.jsonl").write_text(lines)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}
