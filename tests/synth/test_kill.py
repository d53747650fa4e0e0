"""A step that is killed: what is left behind, and how the next attempt ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from synth.stage import CHAT_DATA
from tests.jobs import make_job, run_here
from tests.synth.worlds import files, problem, write_corpus

_RUN = """
import sys
from pathlib import Path
from synth.stage import CHAT_DATA
from tests.jobs import make_job, run_here
folder, corpus = map(Path, sys.argv[1:])
run_here(CHAT_DATA, make_job(CHAT_DATA, folder, {"talk": 0}, {"shard_size": 2}, {"corpus": corpus}))
"""


def test_a_killed_step_leaves_no_process_and_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [problem(number) for number in range(10)])
    folder = tmp_path / "killed"
    shards = folder / "scratch" / "shards"
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _RUN, str(folder), str(corpus)],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        # In the midst of the second shard: its manager and its two steps are at work.
        _wait(lambda: bool(list(shards.glob("*.jsonl"))) and len(_session(worker.pid)) >= 4, worker)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        finished = {path: path.stat().st_mtime_ns for path in shards.glob("*.jsonl")}
        assert 1 <= len(finished) < 5
        _wait(lambda: not _session(worker.pid))
    finally:
        for process in _session(worker.pid):
            process.kill()

    job = make_job(CHAT_DATA, folder, {"talk": 0}, {"shard_size": 2}, {"corpus": corpus})
    run_here(CHAT_DATA, job)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished shards are not made again"
    whole = make_job(CHAT_DATA, tmp_path / "whole", {"talk": 0}, inputs={"corpus": corpus})
    run_here(CHAT_DATA, whole)
    assert files(job.out) == files(whole.out)


def _session(leader: int) -> list[psutil.Process]:
    """Living processes of the session that `leader` opened."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def _wait(condition: Callable[[], bool], worker: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert worker is None or worker.poll() is None, "the worker ended before it could be killed"
        assert time.monotonic() < deadline, "waited for two minutes in vain"
        time.sleep(0.01)
