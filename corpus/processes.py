"""Calls in forked processes, several at a time, with an error instead of an endless wait where one of them is killed.

`multiprocessing.Pool` waits for ever for a result whose worker the kernel has killed for want of memory.
`ProcessPoolExecutor` notices, but pickles what it calls, and lets tasks run on when one has failed.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from acorn.launch import kill_when_parent_dies

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(call: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """`call(item)` of every item, each in a process forked for it, at most `workers` at a time; in the items' order.

    Only results are pickled. Raises what a call raised, its traceback as a note, or RuntimeError where a process was
    killed; processes that still run are killed then, as they are when this one dies.
    """
    context = get_context("fork")  # what is loaded is shared; so is the lock that the next attempt waits for
    results: dict[int, Result] = {}
    running: dict[Any, tuple[int, Any]] = {}
    to_start = iter(enumerate(items))
    try:
        while len(results) < len(items):
            while len(running) < workers and (following := next(to_start, None)):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(os.getpid(), call, following[1], writer))
                process.start()
                writer.close()  # now a worker that dies closes the pipe
                running[reader] = following[0], process
            for ready in wait(list(running)):
                index, process = running.pop(ready)
                results[index] = _result(ready, process, workers)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return [results[index] for index in range(len(items))]


def _work(parent: int, call: Callable[[Any], Any], item: Any, writer: Connection) -> None:
    kill_when_parent_dies(parent)
    try:
        answer: tuple[Any, Exception | None] = (call(item), None)
    except Exception as error:
        answer = (None, _portable(error))
    writer.send_bytes(pickle.dumps(answer))


def _portable(error: Exception) -> Exception:
    """The error with its traceback; where it would not survive pickling, its type and message."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling runs the error's own code; nothing is lost, its message and traceback go on
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(error.__notes__[-1])
        return plain
    return error


def _result(reader: Any, process: Any, workers: int) -> Any:
    try:
        answer = reader.recv_bytes()
    except (EOFError, OSError):  # nothing, or the half of it
        answer = None
    reader.close()
    process.join()
    if answer is None:
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(
            f"a worker process {how}; Linux does that when memory runs out: set execution.workers lower "
            f"({workers} were allowed) or give the machine more memory"
        )
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result
