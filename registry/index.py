"""index.sqlite: what this machine remembers, so that nothing is read or hashed twice.

A cache and nothing more: artifacts, refs and locks are files, and every answer can be had without it. So trouble with
it (locked for long, a full or read-only disk) costs time, never an answer: it is logged and the work is done again. A
database that is no database any more is thrown away. WAL mode lets readers go on while one process writes.
"""

from __future__ import annotations

import logging
import os
import platform
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

BUSY_SECONDS = 10.0
_LOG = logging.getLogger(__name__)
_TABLES = """
CREATE TABLE IF NOT EXISTS manifests (key TEXT PRIMARY KEY, stamp TEXT NOT NULL, manifest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS verified (machine TEXT, key TEXT, manifest TEXT NOT NULL, stamp TEXT NOT NULL,
    PRIMARY KEY (machine, key));
CREATE TABLE IF NOT EXISTS sources (machine TEXT, path TEXT, stamp TEXT NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (machine, path));
"""


class Index:
    """The cache in one SQLite file. Safe across threads, processes and forks: each gets its own connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine = platform.node()
        self._local = threading.local()

    def verified(self, key: str) -> tuple[str, str] | None:
        """(sha256 of the manifest, stamp of the files) with which artifact `key` was last found whole here."""
        rows = self._read("SELECT manifest, stamp FROM verified WHERE machine=? AND key=?", (self.machine, key))
        return (rows[0][0], rows[0][1]) if rows else None

    def remember_verified(self, key: str, manifest: str, stamp: str) -> None:
        self._write("INSERT OR REPLACE INTO verified VALUES (?,?,?,?)", [(self.machine, key, manifest, stamp)])

    def source(self, path: str, stamp: str) -> str | None:
        """sha256 of the file at `path` if it was hashed with this stamp."""
        query = "SELECT sha256 FROM sources WHERE machine=? AND path=? AND stamp=?"
        rows = self._read(query, (self.machine, path, stamp))
        return str(rows[0][0]) if rows else None

    def remember_source(self, path: str, stamp: str, sha256: str) -> None:
        self._write("INSERT OR REPLACE INTO sources VALUES (?,?,?,?)", [(self.machine, path, stamp, sha256)])

    def manifests(self) -> dict[str, tuple[str, bytes]]:
        """key -> (stamp, manifest bytes) as last read and checked."""
        return {key: (stamp, raw) for key, stamp, raw in self._read("SELECT key, stamp, manifest FROM manifests", ())}

    def remember_manifests(self, rows: Iterable[tuple[str, str, bytes]]) -> None:
        self._write("INSERT OR REPLACE INTO manifests VALUES (?,?,?)", list(rows))

    def forget(self, keys: Iterable[str]) -> None:
        rows = [(key,) for key in keys]
        self._write("DELETE FROM manifests WHERE key=?", rows)
        self._write("DELETE FROM verified WHERE key=?", rows)

    def clear(self) -> None:
        """Drop the whole cache."""
        self._local = threading.local()
        for suffix in ("-wal", "-shm", ""):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _read(self, query: str, arguments: Sequence[object]) -> list[tuple]:
        if not self.path.exists():
            return []
        try:
            return self._connection().execute(query, arguments).fetchall()
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return []

    def _write(self, query: str, rows: list[tuple]) -> None:
        if not rows:
            return
        try:
            with self._connection() as connection:
                connection.executemany(query, rows)
        except (sqlite3.DatabaseError, OSError) as error:
            self._recover(error)

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection. One inherited over a fork is kept unused: SQLite forbids even closing it there."""
        mine = self._local.__dict__.setdefault("connections", {})
        if os.getpid() not in mine:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_TABLES)
            mine[os.getpid()] = connection
        connection = mine[os.getpid()]
        assert isinstance(connection, sqlite3.Connection)
        return connection

    def _recover(self, error: Exception) -> None:
        if isinstance(error, sqlite3.OperationalError | OSError):
            _LOG.warning("%s: %s; going on without the cache", self.path, error)
            return
        _LOG.warning("%s is no database any more (%s); starting a new one", self.path, error)
        self.clear()
