"""The model's process dies, hangs or never loads, and the server keeps standing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from openai import APIError, InternalServerError

from serve.frames import pack
from serve.pulse import Pulse
from serve.settings import Network
from serve.supervisor import Supervisor, WorkerDied
from tests.serve.servers import (
    ASK,
    ENDLESS,
    NAME,
    PATIENCE,
    Running,
    give_up_after,
    key,
    settings_of,
    stopped_worker,
    until,
)


def test_a_killed_worker_ends_its_requests_with_an_error_and_comes_back(guarded: Running) -> None:
    client, before = guarded.client(), guarded.supervisor.pid
    stream = client.chat.completions.create(**ENDLESS, stream=True)
    next(iter(stream))
    failed: list[Exception] = []

    def wait_for_whole() -> None:
        try:
            client.chat.completions.create(**ENDLESS)
        except InternalServerError as error:
            failed.append(error)

    whole = threading.Thread(target=wait_for_whole)
    with stopped_worker(guarded) as worker:  # or it fills the stream that nobody reads meanwhile
        whole.start()
        until(lambda: guarded.supervisor.in_flight == 2)
        os.kill(worker, signal.SIGKILL)
    with pytest.raises(APIError, match="process ended while this request ran"):
        list(stream)
    whole.join(PATIENCE)
    assert [error.status_code for error in failed] == [503]  # type: ignore[attr-defined]
    # A request that comes while the worker is away waits for it.
    patient = guarded.client(timeout=guarded.network.ready_seconds)
    answer = patient.chat.completions.create(model=NAME, messages=ASK, max_tokens=2)
    assert answer.usage is not None
    assert guarded.supervisor.pid != before
    text = guarded.get("/metrics", headers=key(guarded)).text
    assert "acorn_worker_restarts 1.0" in text
    assert "acorn_worker_ready 1.0" in text


def test_a_worker_that_hangs_is_killed_and_started_again(guarded: Running) -> None:
    supervisor, before, killed = guarded.supervisor, guarded.supervisor.pid, guarded.supervisor.hangs
    stream = guarded.client().chat.completions.create(**ENDLESS, stream=True)
    next(iter(stream))
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    give_up_after(supervisor, 0.1)
    with pytest.raises(APIError, match="process ended while this request ran"):
        list(stream)
    health = guarded.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert "was silent for 0.1 s and was killed" in health.json()["reason"]
    patient = guarded.client(timeout=guarded.network.ready_seconds)
    assert patient.chat.completions.create(model=NAME, messages=ASK, max_tokens=2).usage is not None
    assert (supervisor.pid != before, supervisor.hangs) == (True, killed + 1)
    assert guarded.get("/health").json() == {"status": "ok"}
    assert f"acorn_worker_hangs {killed + 1:.1f}" in guarded.get("/metrics", headers=key(guarded)).text


def test_a_worker_that_has_nothing_to_do_gives_signs_of_life(guarded: Running) -> None:
    supervisor = guarded.supervisor
    until(lambda: supervisor.ready and supervisor.in_flight == 0)
    supervisor._heard = False
    guarded.loop.call_soon_threadsafe(supervisor._send, pack({"op": "ping"}))
    until(lambda: supervisor._heard)


@pytest.mark.parametrize(
    ("sign", "owing", "works", "killed"),
    [
        ("an answer", False, False, False),
        ("an answer", True, True, False),
        ("an answer", True, False, True),
        ("a token", True, False, False),
        ("that it loads", False, True, False),
        ("that it loads", False, False, True),
        ("none", False, True, True),
    ],
)
def test_only_a_worker_that_gives_no_sign_of_life_or_of_work_is_killed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, sign: str, owing: bool, works: bool, killed: bool
) -> None:
    monkeypatch.setattr("serve.supervisor.Pulse", lambda _: SimpleNamespace(beats=lambda _: works))

    async def watch() -> int:
        supervisor = Supervisor(settings_of(tiny_model), Network(silent_seconds=0.02))
        supervisor._flights = {0: None} if owing else {}  # type: ignore[dict-item]
        pings = 0

        def answer(_: bytes) -> None:
            nonlocal pings
            pings += 1
            supervisor._heard, supervisor._moved = sign in ("an answer", "a token"), sign == "a token"
            supervisor._excused = sign == "that it loads"
            if pings == 50:
                watching.cancel()

        supervisor._send = answer  # type: ignore[method-assign]
        supervisor._ready.set()
        process = SimpleNamespace(kill=lambda: None, pid=0)
        watching = asyncio.ensure_future(supervisor._watch(process))  # type: ignore[arg-type]
        await asyncio.wait([watching])
        return supervisor.hangs

    assert asyncio.run(watch()) == killed


def test_a_process_that_waits_does_nothing_and_one_that_computes_or_reads_does_something(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    reading = f"while open({str(tmp_path / 'file')!r}).read(): time.sleep(0.01)"
    for code, enough in (("time.sleep(1000)", 0.3), ("while True: pass", 0.3), (reading, 1e9)):
        script = f"import time\nprint(flush=True)\n{code}"
        with subprocess.Popen([sys.executable, "-Sc", script], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            pulse = Pulse(child.pid)
            pulse.beats(0)
            if code.startswith("while"):
                until(lambda: pulse.beats(enough))  # noqa: B023
            else:
                assert not pulse.beats(enough)
            child.kill()
    assert not pulse.beats(0.3)


def test_a_worker_that_hangs_while_it_loads_is_killed_and_started_again(guarded: Running) -> None:
    supervisor, before, killed = guarded.supervisor, guarded.supervisor.pid, guarded.supervisor.hangs
    assert before is not None
    weights = supervisor.settings.model / "model.safetensors"
    aside = weights.rename(weights.with_suffix(".aside"))
    os.mkfifo(weights)  # that nobody writes to: who opens it waits for ever
    os.kill(before, signal.SIGKILL)
    until(lambda: supervisor.pid != before)
    give_up_after(supervisor, 0.5)
    until(lambda: supervisor.hangs > killed)
    aside.rename(weights)
    until(lambda: "neither computed nor read anything while it loaded for 0.5 s" in (supervisor.trouble or ""))
    patient = guarded.client(timeout=guarded.network.ready_seconds)
    assert patient.chat.completions.create(model=NAME, messages=ASK, max_tokens=2).usage is not None


def test_a_model_that_cannot_be_loaded_is_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(WorkerDied, match="is no GGUF model that can be read"):
        Running(settings_of(tiny_model, engine="llamacpp")).start()


def test_a_killed_server_takes_its_worker_with_it(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "acorn", "serve", str(tiny_model), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as front:
        assert front.stderr is not None
        for line in front.stderr:
            if line.startswith("serving"):
                break
        [worker] = psutil.Process(front.pid).children()
        front.kill()
        front.wait()

        def gone() -> bool:
            try:
                return worker.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return True

        until(gone)
