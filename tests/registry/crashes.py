"""Exit at every call that changes the file system, one process for each."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from tests.registry.world import start, wait

CALLS = [
    *((os, name) for name in ("rename", "replace", "fsync", "mkdir", "chmod", "unlink", "rmdir", "utime", "open")),
    (io, "open"),
]
EXITED = 77


def count_calls(action: Callable[[], object]) -> int:
    """How many such calls `action` makes; it runs in a process of its own."""
    reader, writer = os.pipe()

    def counted() -> None:
        made = _instrument(lambda number: None, lambda number: None)
        action()
        os.write(writer, str(made()).encode())

    assert wait(start(counted)) == 0
    os.close(writer)
    count = int(os.read(reader, 20))
    os.close(reader)
    return count


def exit_at(action: Callable[[], object], call: int, before: bool) -> None:
    """Run `action` in a process that exits, as if killed, just before or just after its `call`-th such call."""

    def leave(number: int) -> None:
        if number == call:
            os._exit(EXITED)

    def doomed() -> None:
        _instrument(leave if before else lambda number: None, lambda number: None if before else leave(number))
        action()

    assert wait(start(doomed)) == EXITED


def _instrument(before: Callable[[int], None], after: Callable[[int], None]) -> Callable[[], int]:
    made = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            number, made = made, made + 1
            before(number)
            try:
                return original(*arguments, **options)
            finally:
                after(number)

        return call

    for module, name in CALLS:
        setattr(module, name, wrap(getattr(module, name)))
    return lambda: made
