"""Ways that take turns: best seconds of each, and the memory that it needed beyond what was there before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import psutil
from tqdm import tqdm


@dataclass
class Measured:
    seconds: float = float("inf")
    """Best of all turns but the first, which warms up."""
    megabytes: float = 0.0
    """Most that the process grew by in any turn; what a way keeps for its next turn counts in its first."""


def take_turns(ways: Mapping[str, Callable[[int], None]], repeats: int) -> dict[str, Measured]:
    """Run all ways `repeats` + 1 times, one after the other; each is given the number of the turn."""
    measured = {name: Measured() for name in ways}
    turns = [(turn, name) for turn in range(repeats + 1) for name in ways]
    for turn, name in tqdm(turns, desc="measure", unit="turn"):
        with Memory() as memory:
            started = time.perf_counter()
            ways[name](turn)
            seconds = time.perf_counter() - started
        best = measured[name]
        best.megabytes = max(best.megabytes, memory.megabytes)
        if turn:
            best.seconds = min(best.seconds, seconds)
    return measured


class Memory(AbstractContextManager["Memory"]):
    """Peak growth of this process's resident memory inside the block, looked at every 5 ms."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._done = threading.Event()
        self._before = psutil.Process().memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.005):
            self.megabytes = max(self.megabytes, (process.memory_info().rss - self._before) / 1e6)
