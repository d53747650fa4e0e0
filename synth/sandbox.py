"""A verdict on a program by running it where it can do no harm: see `synth.jail` for the walls.

A program starts in about 60 ms. It has Python's standard library and nothing else: no network, no file that it could
write (`file_mb: 0`), no other process. What it prints beyond `OUTPUT` bytes ends it.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from synth.jail import BROKEN, UNSAFE
from synth.making_config import Sandbox

OUTPUT = 1 << 20
_TAIL = 2000
_JAIL = Path(__file__).with_name("jail.py")
_MEMORY = ("MemoryError", "Cannot allocate memory")


class Verdict(NamedTuple):
    reason: str | None
    """None: it passed. Else `failed_tests`, `too_slow`, `out_of_memory`, `too_much_output`."""
    output: str
    """The end of what it printed."""


def run_tests(code: str, tests: str, limits: Sandbox) -> Verdict:
    """Run `code` and then `tests` (Python; an exception or a failed assert is a failure).

    Passed is only what reaches the end of the tests: `sys.exit(0)` in the code is a failure. Raises RuntimeError where
    this machine cannot isolate a process and `limits.isolation` demands it.
    """
    nonce = secrets.token_hex(16)
    program = f"{code}\n\n{tests}\n\nprint({nonce!r}, flush=True)\n"
    output, ended, status = _run(program, limits)
    if ended is not None:
        return Verdict(ended, output)
    if status == UNSAFE:
        raise RuntimeError(
            "this machine lets no process have namespaces of its own, so a program could reach files and the network: "
            "allow unprivileged user namespaces, or set `sandbox.isolation: best_effort` inside a machine of no value"
        )
    if status == BROKEN:
        raise RuntimeError(f"the sandbox could not be set up: {output}")
    if status == 0 and output.rstrip().endswith(nonce):
        return Verdict(None, output.rstrip().removesuffix(nonce))
    if any(word in output for word in _MEMORY):
        return Verdict("out_of_memory", output)
    killed_for_time = status in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
    return Verdict("too_slow" if killed_for_time else "failed_tests", output)


def run_all(programs: Sequence[tuple[str, str]], limits: Sandbox) -> list[Verdict]:
    """A verdict for each pair of code and tests, as many at a time as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()) as pool:
        return list(pool.map(lambda pair: run_tests(pair[0], pair[1], limits), programs))


def _run(program: str, limits: Sandbox) -> tuple[str, str | None, int]:
    """What it printed, why it was ended (or None), and its exit code."""
    # The installation's own Python: a virtual environment may lie under /tmp, which the jail hides.
    python = os.path.realpath(sys.executable)
    process = subprocess.Popen(
        [python, "-I", "-S", str(_JAIL), json.dumps(limits.model_dump())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )
    try:
        return _attend(process, program.encode(), time.monotonic() + 2 * limits.seconds + 1)
    finally:
        # The whole group, ended or not: without namespaces a child of the program might live on.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _attend(process: subprocess.Popen[bytes], program: bytes, deadline: float) -> tuple[str, str | None, int]:
    assert process.stdin and process.stdout
    read = bytearray()
    total = 0
    ended = None
    with suppress(BrokenPipeError):  # It ended before it had read the program: the exit code says why.
        process.stdin.write(program)
        process.stdin.close()
    with selectors.DefaultSelector() as ready, process.stdout:
        ready.register(process.stdout, selectors.EVENT_READ)
        while ended is None:
            if not ready.select(max(deadline - time.monotonic(), 0)):
                ended = "too_slow"
                break
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                break
            total += len(piece)
            read = bytearray((read + piece)[-_TAIL:])
            if total > OUTPUT:
                ended = "too_much_output"
        text = read.decode(errors="replace")
        if ended is not None:
            return text, ended, -1
        try:
            return text, None, process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            return text, "too_slow", -1
