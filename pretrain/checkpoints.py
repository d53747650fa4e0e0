"""Checkpoints that a kill cannot spoil: written aside, made durable, then named.

nanotron writes its files in place and names the newest in `latest.txt` before it is complete. Here a checkpoint is
written to `.saving/`, every file is fsynced, a manifest of sizes and SHA-256 is added, and one rename publishes the
folder as its step number. On the way back a checkpoint whose files do not match their manifest is passed over for the
one before. Hashing costs 1 to 2 s per GB; a flipped bit would otherwise load as wrong weights without a word.

Every process of the job must see this folder: on several nodes it has to lie on a shared file system.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    step: int
    facts: dict[str, Any]
    """What was stored beside it, such as the topology."""


class CheckpointFolder:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aside = folder / ".saving"

    def prepare(self) -> None:
        """Empty the place where the next checkpoint is written. Raises OSError where it would not fit on the disk."""
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir(parents=True)
        if before := self._numbered():
            step, newest = before[0]
            needed, free = sum(path.stat().st_size for path in _files(newest)), shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(
                    errno.ENOSPC,
                    f"{free / 1e6:.1f} MB free, and a checkpoint takes {needed / 1e6:.1f}: make room and run the same "
                    f"command again; it goes on from step {step}",
                    str(self.folder),
                )

    def publish(self, step: int, facts: dict[str, Any]) -> None:
        """Name the checkpoint that lies in `.saving/<step>`, then drop all but the newest two."""
        written = self.aside / str(step)
        files = {str(path.relative_to(written)): _describe(path) for path in _files(written)}
        (written / MANIFEST).write_text(json.dumps({"step": step, "facts": facts, "files": files}, indent=1))
        for path in [*written.rglob("*"), written]:
            _fsync(path)
        target = self.folder / str(step)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step, passed over when this run began
        written.rename(target)
        _fsync(self.folder)
        shutil.rmtree(self.aside)
        for _, old in self._numbered()[KEPT:]:
            shutil.rmtree(old)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with the newer ones."""
        complaints: list[str] = []
        for step, folder in self._numbered():
            wrong = _damage(folder)
            if wrong is None:
                facts = json.loads((folder / MANIFEST).read_text())["facts"]
                return Checkpoint(folder, step, facts), complaints
            complaints.append(f"checkpoint {folder} is passed over: {wrong}")
        return None, complaints

    def _numbered(self) -> list[tuple[int, Path]]:
        """(step, folder), newest first."""
        if not self.folder.exists():
            return []
        return sorted(((int(path.name), path) for path in self.folder.iterdir() if path.name.isdigit()), reverse=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _describe(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _damage(folder: Path) -> str | None:
    """The first thing that differs from the manifest; None if nothing does."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, description in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != description[0]:
            return f"{name} has {path.stat().st_size} bytes instead of {description[0]}"
        if _describe(path) != description:
            return f"{name} is not what was written"
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
