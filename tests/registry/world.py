"""Small artifacts to attack, and processes to attack them from.

Processes are forked from the test's own: they are real ones (own pid, own locks), start in a millisecond, and can be
killed at any point of what is tested rather than during their imports.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from registry import Artifact, Build, Registry, Spec

FILES = {"weights.bin": b"\x00\x01" * 500, "tokenizer/vocab.json": b'{"a": 1}', "logs/metrics.jsonl": b'{"loss": 1}\n'}


def spec(name: str, inputs: Mapping[str, Artifact] | None = None) -> Spec:
    return Spec("toy", 1, "model", {"name": name}, {"device": "cpu"}, inputs or {})


def fill(build: Build, files: Mapping[str, bytes] = FILES) -> None:
    for path, content in files.items():
        (build.out / path).parent.mkdir(parents=True, exist_ok=True)
        (build.out / path).write_bytes(content)


def make(
    registry: Registry,
    name: str,
    inputs: Mapping[str, Artifact] | None = None,
    files: Mapping[str, bytes] = FILES,
    licenses: tuple[str, ...] = (),
) -> Artifact:
    """Build and publish a toy artifact, or hit it."""
    with registry.build(spec(name, inputs)) as build:
        if build.artifact is not None:
            return build.artifact
        fill(build, files)
        return build.publish(metrics={"loss": 0.5}, licenses=licenses)


def settle() -> None:
    """Wait until what was just written counts as left alone, so that its verification is remembered."""
    time.sleep(0.06)


def age(registry: Registry, *keys: str, days: float = 2) -> None:
    """Make artifacts look as if nobody had touched them for days."""
    then = time.time() - days * 86400
    for key in keys:
        os.utime(registry.artifacts_folder / key, (then, then))


def flip_bit(file: Path, byte: int = 0, bit: int = 0, keep_times: bool = False) -> None:
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.chmod(0o644)
    file.write_bytes(content)
    if keep_times:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def start(action: Callable[[], object]) -> int:
    """Run `action` in a forked process; returns its pid. Its exit status is 0 if `action` returned."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Exit status of a forked process; minus the signal's number if one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
