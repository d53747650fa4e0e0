"""distilabel 1.5.3's pipeline, and what has to be patched in it: one call of `execute` is one pipeline without cache.

distilabel's own resume after a crash hangs, so resuming is the business of `synth.shards`. The steps are forked
processes, and they die with this one. Starting and ending a pipeline costs about 0.6 s.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import distilabel.distiset
import distilabel.pipeline.base
import distilabel.pipeline.local
from distilabel.pipeline import Pipeline
from distilabel.pipeline.ray import RayPipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.utils.logging import stop_logging

from synth.processes import die_with, process_kept

STEPS = 2
"""Processes of a pipeline here: one that loads the rows, one that works on them."""


def execute(
    rows: Sequence[Mapping[str, Any]],
    make_step: Callable[[], Any],
    scratch: Path,
    batch_size: int,
    ray: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What a distilabel step makes of `rows`, by one pipeline `LoadDataFromDicts >> make_step()`.

    A row has an `id` and the step's input columns; its outputs come back with it. `ray` are arguments of RayPipeline:
    then the steps are actors of that cluster instead of processes. Raises RuntimeError if a batch failed (distilabel
    would go on with a row of None for each of its rows) or a row is missing (it was interrupted), ChildProcessError if
    a step's process died (it would wait for ever).
    """
    cache = scratch / "distilabel"
    shutil.rmtree(cache, ignore_errors=True)
    failures = _Failures()
    others = set(multiprocessing.active_children())
    with _patched(cache), process_kept():
        with _make_pipeline(cache, ray) as pipeline:
            load = LoadDataFromDicts(data=[dict(row) for row in rows], batch_size=batch_size)
            load >> make_step()
        try:
            distiset = pipeline.run(use_cache=False, logging_handlers=[failures])
        except KeyboardInterrupt:
            # The pool's children are no daemons: one that is left would be waited for at exit.
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise
        except RuntimeError as error:
            raise RuntimeError("distilabel's pipeline did not run:\n" + "\n".join(failures.messages)) from error
        finally:
            stop_logging()  # The pipeline does it only when it ends well.
        failures.check()
        answered: list[dict[str, Any]] = distiset["default"]["train"].to_list()
    shutil.rmtree(cache)
    if lost := {row["id"] for row in rows} - {row["id"] for row in answered}:
        raise RuntimeError(f"distilabel left {len(lost)} of {len(rows)} prompts without an answer: was it interrupted?")
    place = {row["id"]: number for number, row in enumerate(rows)}
    return sorted(answered, key=lambda row: place[row["id"]])


def _make_pipeline(cache: Path, ray: Mapping[str, Any] | None) -> Any:
    common = {"name": "synth", "cache_dir": cache, "enable_metadata": True}
    return _Pipeline(**common) if ray is None else RayPipeline(**common, **ray)


class _Pipeline(Pipeline):  # type: ignore[misc]
    """Waits for the error of a step that could not load, which comes by another way than the news that it could not.

    Ctrl-C is a KeyboardInterrupt and ends it at once: distilabel's own handler asks the steps to finish their batches,
    and a second later everybody waits for everybody.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._heard = threading.Event()

    def _error_callback(self, e: BaseException) -> None:
        super()._error_callback(e)
        self._heard.set()

    def _handle_keyboard_interrupt(self) -> Any:
        return signal.signal(signal.SIGINT, _interrupted)

    def _set_steps_not_loaded_exception(self) -> None:
        self._heard.wait(timeout=10)
        super()._set_steps_not_loaded_exception()


def _interrupted(*_: Any) -> None:
    """Ctrl-C reaches the steps, too; that the pool replaces one that it ended is no news now, and must not be raised
    in the midst of taking the pool down."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Failures(logging.Handler):
    """Remembers that a batch failed, and why: distilabel only logs it."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def check(self) -> None:
        if any("Sending empty batch" in message for message in self.messages):
            causes = [message for message in self.messages if "traceback" in message]
            raise RuntimeError(
                "distilabel could not answer a batch of prompts; finished shards are kept, so mend the cause and run "
                "again.\n" + "\n".join(causes)
            )


@contextmanager
def _patched(cache: Path) -> Iterator[None]:
    """distilabel 1.5.3 (the newest release), while a pipeline runs:

    - a step's process that dies, killed for lack of memory, is replaced and its work forgotten: the pipeline would
      wait for ever, so the replacement tells this process;
    - its manager and step processes outlive a killed parent, waiting for ever on pipes whose other end they hold
      themselves (4 orphans after SIGKILL): each now dies with this process;
    - it polls for loaded steps every 2.5 s and for finished ones every 0.5 s, which is most of a small pipeline's
      time: at most 0.02 s here;
    - it reads its result through the user's `datasets` cache, which would grow by every shard: kept in `cache`.
    """
    parent = os.getpid()

    def manager() -> SyncManager:
        made = SyncManager(ctx=multiprocessing.get_context())
        made.start(initializer=die_with, initargs=(parent,))
        return made

    local, base, distiset = distilabel.pipeline.local, distilabel.pipeline.base, distilabel.distiset
    born = multiprocessing.Value("i", 0)
    leashed = partial(_leashed, parent, born, local._init_worker)
    patches: list[tuple[Any, str, Any]] = [
        (local, "mp", SimpleNamespace(Queue=multiprocessing.Queue, Manager=manager)),
        (local, "_init_worker", leashed),
        (base, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.02)), time=time.time)),
        (distiset, "load_dataset", partial(datasets.load_dataset, cache_dir=str(cache / "datasets"))),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        for module, name, value in patches:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        if not bars:
            datasets.enable_progress_bars()


def _leashed(parent: int, born: Any, init_worker: Any, *arguments: Any) -> None:
    # The pool ends its workers by SIGTERM. A handler they inherit, as the command line's, may raise where distilabel
    # swallows it, and the pool would wait for ever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    init_worker(*arguments)
    with born.get_lock():
        born.value += 1
        replacement = born.value > STEPS
    if replacement:
        os.kill(parent, signal.SIGUSR1)
        # Until SIGTERM. It must not go on to take the lock of the pool's queue: the thread that forked it ends before
        # the pool takes that lock, and with the thread this process (prctl(2): "parent" is a thread), lock in hand.
        while True:
            signal.pause()
