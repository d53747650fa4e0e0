"""Locks between processes of one machine: flock, which the kernel frees when the last holder dies.

Nothing has to be cleaned up after a kill, and no timeout has to be guessed. The price: flock is not to be trusted on
NFS or Lustre. On a shared cluster disk give each machine its own home and share through push and pull; a lease that
is renewed by heartbeat can replace `Locks` behind the same four methods.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GC = "gc.lock"
"""Exclusive: garbage collection decides. Shared: somebody registers what it needs."""


class Held:
    """A lock that is held until `release`, or until every process that inherited `descriptor` is gone."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        """Free the lock now, whoever else inherited it."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)

    def leave(self) -> None:
        """Let go, but leave it held for as long as a child that inherited it is alive."""
        os.close(self.descriptor)


class Locks:
    """Named locks in `folder`, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def acquire(self, name: str, shared: bool = False, on_wait: Callable[[], None] | None = None) -> Held:
        """Hold lock `name`; `on_wait` is called once if somebody else has it."""
        held = self.try_acquire(name, shared)
        if held is not None:
            return held
        if on_wait is not None:
            on_wait()
        while (held := self._lock(name, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) is None:
            pass  # the file was removed while we waited for it: lock its successor
        return held

    def try_acquire(self, name: str, shared: bool = False) -> Held | None:
        """Hold lock `name`, or None if somebody else has it."""
        try:
            return self._lock(name, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    @contextmanager
    def holding(self, name: str, shared: bool = False) -> Iterator[None]:
        """Hold lock `name` for the length of a `with` block."""
        held = self.acquire(name, shared)
        try:
            yield
        finally:
            held.release()

    def held(self) -> set[str]:
        """Names of all locks that somebody holds right now."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return {name for name in names if self._is_held(name)}

    def _is_held(self, name: str) -> bool:
        held = self.try_acquire(name, shared=True)
        if held is not None:
            held.release()
        return held is None

    def forget(self, name: str) -> None:
        """Remove the file of lock `name` unless somebody holds it; who waits for it takes a new one."""
        held = self.try_acquire(name)
        if held is not None:
            (self.folder / name).unlink(missing_ok=True)
            held.release()

    def _lock(self, name: str, operation: int) -> Held | None:
        """None: the file was replaced or removed before we had it, so holding it would guard nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            mine, there = os.fstat(descriptor), path.stat()
        except FileNotFoundError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            os.close(descriptor)
            return None
        return Held(descriptor)
