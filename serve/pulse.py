"""Whether a process does anything, by what the operating system has counted: for a worker that owes a sign of life."""

from __future__ import annotations

import contextlib

import psutil


class Pulse:
    """Of a process and its children: the seconds they have computed and the bytes they have read, from files too.

    Waiting for a lock, a pipe or a server costs neither. Who waits for a slow disk reads a little all the time, and
    who gets little of a busy machine computes a little.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._computed, self._read = 0.0, 0

    def beats(self, enough: float) -> bool:
        """Whether since it last did, or was born, it has computed for `enough` seconds, or read anything."""
        computed, read = _counted(self._pid)
        if computed - self._computed < enough and read <= self._read:
            return False
        self._computed, self._read = computed, read
        return True


def _counted(pid: int) -> tuple[float, int]:
    computed, read = 0.0, 0
    with contextlib.suppress(psutil.Error):  # it has ended
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                computed += sum(one.cpu_times()[:4])  # its own and its ended children's, user and system
                if hasattr(one, "io_counters"):  # not on macOS
                    counts = one.io_counters()
                    read += counts.read_bytes + counts.read_chars
    return computed, read
