"""Steps forked from a process that has imported their libraries are like steps with a Python of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acorn import forkserver
from acorn.forkserver import ForkServer, ServerGone
from acorn.launch import _spawn, stop_group
from acorn.recipe import load_recipe
from acorn.run import run_recipe
from registry import Registry

pytestmark = pytest.mark.skipif(not forkserver.available, reason="steps are forked on Linux alone")
RECIPE = """
name: forked
steps:
  corpus:
    stage: problems
    config: {documents: 20, validation_documents: 2, problems_train: 5, problems_test: 5}
  first: {stage: tokenizer, inputs: {corpus: corpus}, config: {vocab_size: 300}}
  second: {stage: tokenizer, inputs: {corpus: corpus}, config: {vocab_size: 310}}
"""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    made = ForkServer(lambda command, fds: _spawn(command, dict(os.environ), fds), libraries=())
    yield made
    stop_group(made.process, grace=0.0)


def sleeping_job(folder: Path) -> Path:
    """A job that never gets beyond `workers.lock`, which it opens first of all: a fifo that nobody reads."""
    os.mkfifo(folder / "workers.lock")
    job = folder / "job.json"
    job.write_text(json.dumps({"scratch": str(folder)}))
    return job


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(*pids: int) -> None:
    deadline = time.monotonic() + 300
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.01)


def test_a_forked_step_publishes_what_a_spawned_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe, digests = load_recipe(tmp_path / "recipe.yaml"), []
    for forked in (True, False):
        monkeypatch.setattr(forkserver, "available", forked)
        made = run_recipe(recipe, Registry(tmp_path / str(forked)), lambda event: None)
        digests.append({name: artifact.digest for name, artifact in made.items()})
    assert digests[0] == digests[1]


def test_a_child_has_the_environment_asked_for_and_no_other() -> None:
    code = """
import os
from acorn.forkserver import become
become({"OF_THIS_STEP": "yes"}, os.getppid())
print(dict(os.environ))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'OF_THIS_STEP': 'yes'}"


def test_a_child_leads_a_session_of_its_own_that_can_be_ended(server: ForkServer, tmp_path: Path) -> None:
    step = server.fork(sleeping_job(tmp_path), dict(os.environ))
    assert os.getsid(step.pid) == step.pid
    with pytest.raises(subprocess.TimeoutExpired):
        step.wait(0.01)
    stop_group(step)
    assert step.wait() == -signal.SIGTERM
    wait_until_dead(step.pid)


def test_a_failed_step_gives_its_exit_code_and_the_next_one_starts(server: ForkServer, tmp_path: Path) -> None:
    assert server.fork(tmp_path / "absent.json", dict(os.environ)).wait() == 1
    step = server.fork(sleeping_job(tmp_path), dict(os.environ))
    os.kill(step.pid, signal.SIGKILL)
    assert step.wait() == -signal.SIGKILL


def test_a_killed_server_ends_its_step_and_is_no_hang(server: ForkServer, tmp_path: Path) -> None:
    step = server.fork(sleeping_job(tmp_path), dict(os.environ))
    server.process.kill()
    assert step.wait(300) == -signal.SIGKILL
    wait_until_dead(step.pid)
    server.process.wait()
    with pytest.raises(ServerGone):
        server.fork(tmp_path / "job.json", dict(os.environ))


def test_a_step_starts_by_itself_where_the_server_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('a library that breaks')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ForkServer.__init__, "__defaults__", (("broken",),))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    made = run_recipe(load_recipe(tmp_path / "recipe.yaml"), Registry(tmp_path / "home"), lambda event: None)
    assert set(made) == {"corpus", "first", "second"}


def test_a_killed_run_takes_server_and_step_with_it(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from acorn.forkserver import ForkServer, ServerGone
from acorn.launch import _spawn
server = ForkServer(lambda command, fds: _spawn(command, dict(os.environ), fds), libraries=())
step = server.fork(Path({str(sleeping_job(tmp_path))!r}), dict(os.environ))
print(server.process.pid, step.pid, flush=True)
time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    with run.stdout:
        pids = [int(word) for word in run.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    run.kill()
    run.wait()
    wait_until_dead(*pids)
