"""Threads of the `tokenizers` library, which acorn's environment turns off for all steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH = "TOKENIZERS_PARALLELISM"


@contextmanager
def tokenizers_on_all_cores() -> Iterator[None]:
    """Within, `tokenizers` uses all cores, or as many threads as RAYON_NUM_THREADS says.

    The switch is taken away, not set to true: a process forked behind the threads' first use then goes without them,
    where with `true` it would wait for ever for threads that it does not have.
    """
    before = os.environ.pop(_SWITCH, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_SWITCH] = before
