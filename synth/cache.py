"""Responses of LLMs by what was asked: one SQLite file that several steps may use at a time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MOST = 500
"""Keys of one query; SQLite takes at least 999."""


def response_key(model: str, messages: Sequence[Any], row: str, generations: int, parameters: Mapping[str, Any]) -> str:
    """The key of a response: a hash over model, conversation, the row that asks, and the arguments of generation."""
    asked = [model, list(messages), row, generations, parameters]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class ResponseCache:
    """`key -> response` (text), on disk. Each write is one transaction, so a kill leaves whole responses."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        # Safe against kills without an fsync for each transaction; a power cut may cost the last ones.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, response TEXT NOT NULL)")

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """Those of `keys` that are known."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _MOST):
            some = list(keys[start : start + _MOST])
            marks = ",".join("?" * len(some))
            found |= dict(self._db.execute(f"SELECT key, response FROM responses WHERE key IN ({marks})", some))
        return found

    def write(self, responses: Mapping[str, str]) -> None:
        """Keep `responses`; one that is there already stays as it is."""
        if not responses:
            return
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?)", responses.items())

    def close(self) -> None:
        self._db.close()
