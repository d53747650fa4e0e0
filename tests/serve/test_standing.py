"""The server keeps standing: what clients, networks and a dying worker do to it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from openai import APIError, InternalServerError

from acorn.launch import StepFailed
from benchmarks.serve_fuzz import bombard, make_shot
from benchmarks.serve_soak import growth
from serve.command import network_of
from serve.frames import pack
from serve.http import bind, listen
from serve.settings import Network
from serve.supervisor import Supervisor, WorkerDied
from tests.serve.servers import NAME, PATIENCE, POSITIONS, Running, endless_model, running, settings_of, until

ASK = [{"role": "user", "content": "So?"}]
ENDLESS = {"model": NAME, "messages": ASK, "max_tokens": POSITIONS // 2, "temperature": 0}
"""To the guarded server: what runs until it is cancelled, on the fastest machine too."""


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One row, one place to wait, a key, and a model that goes on and on; its worker may be killed."""
    network = Network(port=0, api_key="secret", max_body=20_000)
    model = endless_model(tiny_model, tmp_path_factory.mktemp("guarded") / "model")
    sizes = {"context": POSITIONS, "kv_tokens": POSITIONS + 8192, "rows": 1, "max_waiting": 1}
    with running(settings_of(model, **sizes), network) as server:
        yield server


@contextmanager
def impatient(server: Running, **seconds: float) -> Iterator[None]:
    """With other limits of time for a while: short ones cut off honest clients of a busy machine."""
    before = {name: getattr(server.network, name) for name in seconds}
    try:
        for name, value in seconds.items():
            object.__setattr__(server.network, name, value)  # frozen; it is read anew for every connection
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(server.network, name, value)


@contextmanager
def stopped_worker(server: Running) -> Iterator[int]:
    """The worker's pid, while it is stopped: what it runs stays as it is."""
    pid = server.supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):  # killed, and gone
            os.kill(pid, signal.SIGCONT)


def connect(server: Running, content: bytes, length: int | None = None) -> socket.socket:
    """A connection on which a completion was asked for with `content`, declared as `length` bytes."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.network.api_key}\r\n"
    )
    head += f"Content-Type: application/json\r\nContent-Length: {length or len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + content)
    return connection


def key(server: Running) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.network.api_key}"}


def test_without_its_key_nothing_is_answered(guarded: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        refused = guarded.post("/v1/chat/completions", {"messages": ASK}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert guarded.get("/v1/models", headers=headers).status_code == 401
        assert guarded.get("/metrics", headers=headers).status_code == 401
    assert guarded.get("/health").status_code == 200
    assert guarded.client().models.list().data[0].id == NAME


def test_a_host_that_others_reach_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    open_to_all = Namespace(host="0.0.0.0", port=1, api_key=None, silent_seconds=None)
    with pytest.raises(StepFailed, match="set an API key with ACORN_API_KEY"):
        network_of(open_to_all)
    own = Namespace(host="::1", port=1, api_key=None, silent_seconds=600.0)
    assert (network_of(own).api_key, network_of(own).silent_seconds) == (None, 600)
    own.silent_seconds = 0.0
    with pytest.raises(StepFailed, match="--silent-seconds 0 is less"):
        network_of(own)
    monkeypatch.setenv("ACORN_API_KEY", "k")
    assert network_of(open_to_all).api_key == "k"


def test_a_page_of_another_site_gets_nothing(served: Running) -> None:
    rebound = served.post("/v1/chat/completions", {"messages": ASK}, headers={"Host": "evil.example:8000"})
    assert rebound.status_code == 403
    simple = httpx.post(
        f"{served.url}/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"}, timeout=PATIENCE
    )
    assert simple.status_code == 415
    asked = httpx.options(
        f"{served.url}/v1/chat/completions", headers={"Origin": "https://evil.example"}, timeout=PATIENCE
    )
    assert "access-control-allow-origin" not in asked.headers


def test_a_body_beyond_the_limit_is_413_declared_or_not(guarded: Running) -> None:
    declared = guarded.post("/v1/completions", {"prompt": "x" * 30_000}, headers=key(guarded))
    headers = {**key(guarded), "Content-Type": "application/json"}
    chunks = (b"x" * 1000 for _ in range(30))
    chunked = httpx.post(f"{guarded.url}/v1/completions", content=chunks, headers=headers, timeout=PATIENCE)
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert "20000" in declared.json()["error"]["message"]


def test_bodies_of_all_requests_together_are_bounded(guarded: Running) -> None:
    assert guarded.app.state.held == 0
    guarded.app.state.held = guarded.network.all_bodies - 1_000
    try:
        refused = guarded.post("/v1/completions", {"prompt": "x" * 2_000}, headers=key(guarded))
    finally:
        guarded.app.state.held -= guarded.network.all_bodies - 1_000
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert guarded.app.state.held == 0


def test_the_growth_of_a_soak_is_that_after_the_caches_have_filled() -> None:
    filled = [(at, 60 + min(at, 5000) / 100) for at in range(0, 20_000, 20)]
    assert growth(filled) == (0, 0)
    leaking = [(at, memory + at / 1000) for at, memory in filled]
    assert growth(leaking) == (pytest.approx(7.5, abs=0.1), pytest.approx(1.0, abs=0.01))


def test_several_answers_take_several_places(guarded: Running) -> None:
    two = guarded.post("/v1/completions", {"prompt": "So?", "n": 2, "max_tokens": 1}, headers=key(guarded))
    assert len(two.json()["choices"]) == 2
    three = guarded.post("/v1/completions", {"prompt": "So?", "n": 3, "max_tokens": 1}, headers=key(guarded))
    assert three.status_code == 400
    assert "places for 2" in three.json()["error"]["message"]
    guarded.app.state.admitted += 1
    try:
        refused = guarded.post("/v1/completions", {"prompt": "So?", "n": 2, "max_tokens": 1}, headers=key(guarded))
    finally:
        guarded.app.state.admitted -= 1
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert guarded.app.state.admitted == 0


def test_an_address_that_is_taken_is_refused_before_and_after_the_model_is_loaded() -> None:
    ours = bind(Network(port=0))
    port = ours.getsockname()[1]
    with ours, bind(Network(port=port)) as other:  # neither listens yet
        listen(other, 10)
        with pytest.raises(ValueError, match=f"127.0.0.1:{port}.*in use; take another --port"):
            listen(ours, 10)
        with pytest.raises(ValueError, match="in use"):
            bind(Network(port=port))
    with pytest.raises(ValueError, match="take another --port"):
        bind(Network(port=70_000))


def test_clients_that_send_too_slowly_are_let_go(guarded: Running) -> None:
    with impatient(guarded, body_seconds=0.5):
        with socket.create_connection(("127.0.0.1", guarded.port)) as slow:
            slow.sendall(b"POST /v1/comp")
            slow.settimeout(PATIENCE)
            assert slow.recv(1000) == b""
        with connect(guarded, b"{", length=100) as slow:
            slow.settimeout(PATIENCE)
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
    assert guarded.app.state.admitted == 0


def test_a_client_that_leaves_frees_its_sequence(guarded: Running) -> None:
    supervisor = guarded.supervisor
    for stream in (True, False):  # one that reads, and one that waits for a whole answer
        with connect(guarded, json.dumps({**ENDLESS, "stream": stream}).encode()) as leaving:
            if stream:
                assert b" 200 " in leaving.recv(1000).split(b"\r\n")[0]
            until(lambda: supervisor.stats["running"] == 1)
            assert (supervisor.in_flight, guarded.app.state.admitted) == (1, 1)
        until(lambda: supervisor.in_flight == 0 and guarded.app.state.admitted == 0)
        until(lambda: supervisor.stats["running"] == 0)


def test_one_request_too_many_is_429_and_says_when_to_come_again(guarded: Running) -> None:
    waiting = threading.Thread(target=lambda: guarded.client().chat.completions.create(**{**ENDLESS, "max_tokens": 1}))
    with connect(guarded, json.dumps(ENDLESS).encode()):
        until(lambda: guarded.supervisor.in_flight == 1)  # so the next comes behind it
        waiting.start()
        until(lambda: guarded.app.state.admitted == 2)
        refused = guarded.post("/v1/chat/completions", {"messages": ASK}, headers=key(guarded))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert waiting.is_alive()
    waiting.join(PATIENCE)
    until(lambda: guarded.app.state.admitted == 0)


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
    patience, supervisor.silent_seconds = supervisor.silent_seconds, 0.1
    with pytest.raises(APIError, match="process ended while this request ran"):
        list(stream)
    supervisor.silent_seconds = patience
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


@pytest.mark.parametrize("sign", ["an answer", "that it loads", "none"])
def test_only_a_silent_worker_that_is_not_loading_is_killed(tiny_model: Path, sign: str) -> None:
    async def watch() -> int:
        supervisor = Supervisor(settings_of(tiny_model), Network(silent_seconds=0.02))
        pings = 0

        def answer(_: bytes) -> None:
            nonlocal pings
            pings += 1
            supervisor._heard, supervisor._excused = sign == "an answer", sign == "that it loads"
            if pings == 50:
                watching.cancel()

        supervisor._send = answer  # type: ignore[method-assign]
        supervisor._ready.set()
        process = SimpleNamespace(kill=lambda: None)
        watching = asyncio.ensure_future(supervisor._watch(process))  # type: ignore[arg-type]
        await asyncio.wait([watching])
        return supervisor.hangs

    assert asyncio.run(watch()) == (1 if sign == "none" else 0)


def test_a_model_that_cannot_be_loaded_is_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(WorkerDied, match="is no GGUF model that can be read"):
        Running(settings_of(tiny_model, engine="llamacpp")).start()


def test_two_hundred_clients_at_once_are_answered_or_told_to_come_again(served: Running) -> None:
    places = 20  # 4 rows and 16 to wait

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE, limits=limits) as client:
            body = {"messages": ASK, "max_tokens": 3}
            posts = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(200)]
            with stopped_worker(served):  # or a fast one would answer all as they come
                while sum(post.done() for post in posts) < 200 - places:
                    await asyncio.sleep(0.02)
            return await asyncio.gather(*posts)

    answers = asyncio.run(flood())
    assert Counter(answer.status_code for answer in answers) == {200: places, 429: 200 - places}
    assert served.app.state.admitted == 0


def test_figures_for_prometheus_count_what_was_done(served: Running) -> None:
    served.post("/v1/completions", {"prompt": "Tom", "max_tokens": 3, "temperature": 0})
    text = served.get("/metrics").text
    for name in ("acorn_tokens_total", "acorn_first_token_seconds_bucket", "acorn_next_token_seconds_bucket"):
        assert name in text
    assert 'acorn_requests_total{path="/v1/completions",status="200"}' in text
    assert 'acorn_engine{figure="generated_tokens"}' in text


def test_paths_of_strangers_become_no_figures(served: Running) -> None:
    missing = served.post("/v1/completions/abc", {"prompt": "Tom"})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert "completions/abc" not in served.get("/metrics").text


def test_no_fuzzed_request_is_answered_5xx(served: Running) -> None:
    draw = random.Random(0)  # benchmarks/serve_fuzz.py sends others
    worker = served.supervisor.pid
    counts = asyncio.run(bombard(served.url, [make_shot(draw) for _ in range(150)], clients=4))
    assert {status for status in counts if status >= 500} == set(), counts
    assert counts[200] > 0
    assert served.supervisor.pid == worker
    until(lambda: served.supervisor.in_flight == 0 and served.app.state.admitted == 0)


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_answers_are_those_of_the_api_document(served: Running, mode: str) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_dict(served.get("/openapi.json").json())
    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} > {"/v1/chat/completions", "/v1/completions", "/v1/models"}
    for operation in operations:

        @settings(
            max_examples=8,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def answers_as_documented(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int | None):
                case.body["max_tokens"] = 2
            case.call_and_validate(base_url=served.url, checks=wanted, timeout=PATIENCE)

        if mode == "positive" or operation.method == "post":
            answers_as_documented()


def test_a_killed_server_takes_its_worker_with_it(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "acorn", "serve", str(tiny_model), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as front:
        assert front.stderr is not None
        for line in front.stderr:
            if line.startswith("serving"):
                break
        import psutil

        [worker] = psutil.Process(front.pid).children()
        front.kill()
        front.wait()

        def gone() -> bool:
            try:
                return worker.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return True

        until(gone)
