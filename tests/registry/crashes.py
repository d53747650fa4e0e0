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


def exits_at(action: Callable[[], object], call: int, before: bool = False) -> bool:
    """Run `action` in a process that exits, as if killed, just after (or before) its `call`-th such call, from 0.

    False if it finished first: then every call has been tried.
    """

    def leave(number: int) -> None:
        if number == call:
            os._exit(EXITED)

    def stay(number: int) -> None:
        pass

    def doomed() -> None:
        _instrument(leave if before else stay, stay if before else leave)
        action()

    status = wait(start(doomed))
    assert status in (0, EXITED)
    return status == EXITED


def _instrument(before: Callable[[int], None], after: Callable[[int], None]) -> None:
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
