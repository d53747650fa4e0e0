"""SIGTERM during training: a request to finish the step, publish a checkpoint and go.

Schedulers send it before they take a machine away; `acorn run` passes it on and waits `grace_seconds`. Python runs a
handler between two bytecodes, so a signal that arrives inside a kernel or a collective is noticed after it.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Stopped(SystemExit):
    """Training ended at `step` because of SIGTERM, its checkpoint published: exit code 143, as the signal's own."""

    def __init__(self, step: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.step = step


class StopRequest:
    """Inside the block SIGTERM sets `asked`, however often it comes; then the handler from before is back.

    Only a process's main thread may enter it, as Python has it.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
