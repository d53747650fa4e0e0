"""What can go wrong in a registry; every message says what, where, and what to do next."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RegistryError(Exception):
    """Base of everything the registry raises on purpose."""


class UnknownArtifact(RegistryError):
    """No artifact, ref or unique key prefix of this name is here."""


class NotPlain(RegistryError):
    """`file` is a link, a device, or has a name that no manifest can hold."""

    def __init__(self, file: Path, reason: str, remedy: str) -> None:
        self.file = file
        self.reason = reason
        super().__init__(f"{file} {reason}; {remedy}")


class DamagedArtifact(RegistryError):
    """The bytes on disk are not those that were published. `key` and `file` name what is wrong."""

    def __init__(self, key: str, file: Path, reason: str, remedy: str | None = None) -> None:
        self.key = key
        self.file = file
        self.reason = reason
        remedy = remedy or "delete the artifact's folder and run its recipe (or pull it) again"
        super().__init__(f"artifact {key} is damaged: {file}: {reason}; {remedy}")


class DiskFull(RegistryError):
    """A write failed for want of space or quota; nothing was published."""

    def __init__(self, path: Path, need: int | None = None) -> None:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        wanted = f", {need / 1e6:,.1f} MB needed" if need is not None else ""
        super().__init__(
            f"no space left under {path}: {free / 1e6:,.1f} MB free{wanted}; nothing was published. "
            "Free some space (gc removes what no ref needs) or set ACORN_HOME to a larger disk, then run again"
        )


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the kernel's "no space" or "over quota" into `DiskFull` naming `path`; let every other error pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(path) from error
        raise
