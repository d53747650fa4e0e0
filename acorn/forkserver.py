"""A process that has imported torch and transformers, from which the steps of one run are forked.

Importing them takes 4 s of CPU, 10 s where no bytecode is kept, which each of the dozen steps of a small recipe would
spend again. Forked, a step starts in 30 ms with everything there: the smoke recipe took 317 s without and 147 s with
this, one after the other on two slow cores that kept no bytecode.

    python -m acorn.forkserver FD MODULE...

FD is a socket of packets, MODULE what to import. A request `{"job", "environ"}` is answered by the child with its pid,
then by the server with the child's exit code; one child at a time. Nothing imported here may start CUDA or a thread of
OpenMP: neither survives a fork. acorn's own modules are not imported ahead: a step runs the source of its day.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

LIBRARIES = ("torch", "wandb", "datasets", "accelerate", "transformers.models.llama.modeling_llama", "trl")
LARGEST_PACKET = 1 << 17
"""Bytes. An environment is some 5,000 of them; Linux takes 200,000."""
GONE = -signal.SIGKILL
"""Exit code of a step whose server is gone: its children went with it."""
available = sys.platform == "linux"
"""Elsewhere forking behind such imports is not safe (macOS) or not there: every step starts a Python of its own."""

Spawn = Callable[[list[str], tuple[int, ...]], "subprocess.Popen[bytes]"]
"""Starts a command that keeps some file descriptors open."""


class ServerGone(Exception):
    """The server ended before the step had started: an import in it failed, or somebody killed it."""


class Forked:
    """A step's process, child of the server: what `subprocess.Popen` has of use here."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._code: int | None = None
        self.pid = self._receive(None)
        if self.pid == GONE:
            raise ServerGone

    def wait(self, timeout: float | None = None) -> int:
        """Exit code; negative for a signal. Raises subprocess.TimeoutExpired."""
        if self._code is None:
            self._code = self._receive(timeout)
        return self._code

    def _receive(self, timeout: float | None) -> int:
        self._link.settimeout(timeout)
        try:
            answer = self._link.recv(LARGEST_PACKET)
        except TimeoutError:
            raise subprocess.TimeoutExpired("forked step", timeout or 0.0) from None
        except ConnectionResetError:  # It died before it had read the request.
            return GONE
        return int(answer) if answer else GONE


class ForkServer:
    """Started at once, ready when its imports are done; `fork` waits for that."""

    def __init__(self, spawn: Spawn, libraries: Sequence[str] = LIBRARIES) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "acorn.forkserver", str(theirs.fileno()), *libraries]
            self.process = spawn(command, (theirs.fileno(),))

    def fork(self, job_file: Path, environ: dict[str, str]) -> Forked:
        """Start the step of `job_file` in a session of its own. Raises ServerGone."""
        try:
            self._link.send(json.dumps({"job": str(job_file), "environ": environ}).encode())
        except BrokenPipeError:
            raise ServerGone from None
        return Forked(self._link)


def serve(link: socket.socket, libraries: Sequence[str]) -> Path | None:
    """Import, then fork at each request. Returns a job file in a child, None in the server at the end."""
    for library in libraries:
        with contextlib.suppress(ImportError):  # The step that needs it says so.
            import_module(library)
    gc.collect()
    gc.freeze()  # A collection in a child would copy every page that it looks at.
    server = os.getpid()
    while request := link.recv(LARGEST_PACKET):
        pid = os.fork()
        if pid == 0:
            become(json.loads(request)["environ"], server)
            link.send(str(os.getpid()).encode())  # Not earlier: whoever ends a step signals its session.
            link.close()
            return Path(json.loads(request)["job"])
        link.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    return None


def become(environ: dict[str, str], server: int) -> None:
    """Make this child the process that a launch with `environ` would have started: it dies with its parent."""
    from acorn.launch import kill_when_parent_dies

    kill_when_parent_dies(server)
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        job = serve(requests, sys.argv[2:])
    if job is not None:
        from acorn.worker import work

        work(job)
