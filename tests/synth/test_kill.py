"""A step that is killed: what is left behind, and how the next attempt ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from distilabel.models import LLM

from synth.distilabel import generate
from synth.stage import CHAT_DATA, REWRITE
from tests.jobs import make_job, run_here
from tests.synth.conftest import Scripted
from tests.synth.test_making import mail, texts_corpus
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
    corpus = write_corpus(tmp_path / "corpus", [problem(number) for number in range(20)])
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
        assert 1 <= len(finished) < 10
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


_REWRITE = """
import json, sys
from pathlib import Path
from synth.stage import REWRITE
from tests.jobs import make_job, run_here
folder, corpus, config = sys.argv[1:]
run_here(REWRITE, make_job(REWRITE, Path(folder), json.loads(config), {"shard_size": 2}, {"corpus": Path(corpus)}))
"""


def test_ctrl_c_in_the_midst_of_a_request_leaves_no_process_and_ends_with_the_same_rows(
    scripted_server: Scripted, tmp_path: Path
) -> None:
    texts = [mail(number, "SLOW then" if number == 4 else "then") for number in range(6)]
    corpus = texts_corpus(tmp_path / "corpus", *texts)

    def config(timeout: int) -> dict[str, Any]:
        llm = scripted_server.llm(timeout=timeout)
        made = {"llm": llm, "min_words": 5, "tones": {"friendly": "Make it friendlier."}, "max_parse_failures": 0.5}
        return made | {"filters": {"minhash": None, "repetition": None}}

    folder = tmp_path / "killed"
    before = len(scripted_server.asked())
    with (tmp_path / "stderr").open("w") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _REWRITE, str(folder), str(corpus), json.dumps(config(300))],
            cwd=Path(__file__).parents[2],
            start_new_session=True,
            stderr=errors,
        )
    try:
        _wait(lambda: texts[4] in scripted_server.asked()[before:], worker)
        os.killpg(worker.pid, signal.SIGINT)  # As a terminal does: to every process of the group.
        assert worker.wait(300) != 0
        assert "KeyboardInterrupt" in (tmp_path / "stderr").read_text()
        _wait(lambda: not _session(worker.pid))
    finally:
        for process in _session(worker.pid):
            process.kill()
    assert 1 <= len(list((folder / "scratch" / "shards").glob("*.jsonl"))) < 3
    job = make_job(REWRITE, folder, config(6), {"shard_size": 2}, {"corpus": corpus})
    run_here(REWRITE, job)
    whole = make_job(REWRITE, tmp_path / "whole", config(6), {}, {"corpus": corpus})
    run_here(REWRITE, whole)
    assert files(whole.out) == files(job.out)


class BrokenLLM(LLM):
    """Raises while it generates, dies as if the kernel had killed it for want of memory, or imports a module."""

    does: str

    @property
    def model_name(self) -> str:
        return "broken"

    def generate(self, inputs: Any, num_generations: int = 1) -> Any:
        if self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "raise":
            raise ValueError("the cause")
        import_module(self.does)
        return [{"generations": ["done"], "statistics": {}}]


PROMPT = {"id": "a", "messages": [{"role": "user", "content": "Hello!"}]}


def test_a_batch_that_fails_is_an_error_with_its_cause_and_no_row_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)could not answer a batch.*ValueError: the cause"):
        generate([PROMPT], BrokenLLM(does="raise"), 1, tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_step_process_that_is_killed_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    before, children = signal.getsignal(signal.SIGINT), set(psutil.Process().children(recursive=True))
    # As the command line's: inherited by the pool's workers, it made them outlive the pool's SIGTERM now and then.
    sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(ChildProcessError, match=r"died without a word.*lower `batch_size`"):
            generate([PROMPT], BrokenLLM(does="die"), 1, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, sigterm)
    assert signal.getsignal(signal.SIGINT) == before
    _wait(lambda: set(psutil.Process().children(recursive=True)) <= children)


def test_a_step_may_import_what_an_open_wandb_run_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catboost.py").touch()  # A stand-in for transformers, which this process may hold already.
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with make_job(CHAT_DATA, tmp_path).track():
        assert generate([PROMPT], BrokenLLM(does="catboost"), 1, tmp_path)[0]["text"] == "done"


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
    deadline = time.monotonic() + 300
    while not condition():
        assert worker is None or worker.poll() is None, "the worker ended before it could be killed"
        assert time.monotonic() < deadline, "waited for five minutes in vain"
        time.sleep(0.01)
