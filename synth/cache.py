"""Responses of LLMs by what was asked: one SQLite file of a limited size that several steps may use at a time.

What was neither written nor read for longest makes room. So a read writes its time, in one transaction for all keys;
with the write-ahead log that costs no fsync.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MOST = 500
"""Keys of one query; SQLite takes at least 999."""
_ROOM = 0.9
"""Share of the limit that is left after making room, so that not every write has to."""


def response_key(model: str, messages: Sequence[Any], row: str, generations: int, parameters: Mapping[str, Any]) -> str:
    """The key of a response: a hash over model, conversation, the row that asks, and the arguments of generation."""
    asked = [model, list(messages), row, generations, parameters]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class ResponseCache:
    """`key -> response` (text), on disk. Each change is one transaction, so a kill leaves whole responses.

    `most`: bytes of the file that may be in use, beside the write-ahead log; None: no limit. It counts where this
    object writes, so of two processes each keeps to its own.
    """

    def __init__(self, path: Path, most: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._most = most
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        # SQLite does not wait for another process that turns the log on.
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._set_up()

    def _set_up(self) -> None:
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file; an older one never shrinks
        self._db.execute("PRAGMA journal_mode=WAL")
        # Safe against kills without an fsync for each transaction; a power cut may cost the last ones.
        self._db.execute("PRAGMA synchronous=NORMAL")
        with self._change():
            self._db.execute("CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, response TEXT NOT NULL)")
            if "used" not in [name for _, name, *_ in self._db.execute("PRAGMA table_info(responses)")]:
                self._db.execute("ALTER TABLE responses ADD COLUMN used INTEGER NOT NULL DEFAULT 0")
            self._db.execute("CREATE INDEX IF NOT EXISTS by_use ON responses (used)")
            self._make_room()

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """Those of `keys` that are known."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _MOST):
            some = list(keys[start : start + _MOST])
            marks = ",".join("?" * len(some))
            found |= dict(self._db.execute(f"SELECT key, response FROM responses WHERE key IN ({marks})", some))
        if found:
            with self._change():
                now = self._now()
                self._db.executemany("UPDATE responses SET used = ? WHERE key = ?", ((now, key) for key in found))
        return found

    def write(self, responses: Mapping[str, str]) -> None:
        """Keep `responses`; one that is there already stays as it is."""
        if not responses:
            return
        with self._change():
            now = self._now()
            rows = ((key, response, now) for key, response in responses.items())
            self._db.executemany("INSERT OR IGNORE INTO responses (key, response, used) VALUES (?, ?, ?)", rows)
            self._make_room()
        if self._number("freelist_count") > self._number("page_count") // 4:
            self._db.executescript("PRAGMA incremental_vacuum")  # `execute` would give back one page alone

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One transaction, for which other processes wait."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            yield

    def _now(self) -> int:
        """Later than every use so far, whatever the machine's clock says."""
        (last,) = self._db.execute("SELECT max(used) FROM responses").fetchone()
        return (last or 0) + 1

    def _make_room(self) -> None:
        if self._most is None or self._in_use() <= self._most:
            return
        oldest = "DELETE FROM responses WHERE key IN (SELECT key FROM responses ORDER BY used, rowid LIMIT ?)"
        (left,) = self._db.execute("SELECT count(*) FROM responses").fetchone()
        while left and (excess := self._in_use() - _ROOM * self._most) > 0:
            share = min(1.0, excess / self._in_use())  # as if all were of one size; the next round mends it
            left -= self._db.execute(oldest, (math.ceil(share * left),)).rowcount

    def _in_use(self) -> int:
        return (self._number("page_count") - self._number("freelist_count")) * self._number("page_size")

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(f"PRAGMA {pragma}").fetchone()[0])

    def close(self) -> None:
        self._db.close()
