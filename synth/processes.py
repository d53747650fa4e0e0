"""What a distilabel pipeline does to processes, held in check: children that die with their parent, a parent restored.

Nothing here imports distilabel; `synth.distilabel` says why each is needed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def die_with(parent: int) -> None:
    """End this process when `parent` ends, in whatever way. Linux: by the kernel; elsewhere: looked up each second."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        if ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # It died before we asked.
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _step_died(*_: Any) -> None:
    raise ChildProcessError(
        "a process of distilabel's pipeline died without a word, most likely killed for lack of memory: lower "
        "`batch_size` or `max_new_tokens`. Finished shards are kept"
    )


@contextmanager
def process_kept() -> Iterator[None]:
    """Undo what a pipeline does to its process.

    It clears the root logger's handlers and leaves one on a closed queue, and it leaves its own handler of Ctrl-C.
    """
    interrupt, died = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGUSR1, _step_died)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    quiet = "DISTILABEL_LOG_LEVEL" not in os.environ
    if quiet:
        os.environ["DISTILABEL_LOG_LEVEL"] = "WARNING"
    try:
        yield
    finally:
        if quiet:
            del os.environ["DISTILABEL_LOG_LEVEL"]
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGUSR1, died)
        root.handlers[:] = handlers
        root.setLevel(level)
