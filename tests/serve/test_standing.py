"""The server keeps standing: what clients and networks do to it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
import uvicorn
from hypothesis import given, settings

from acorn.launch import StepFailed
from benchmarks.serve_fuzz import bombard, make_shot
from benchmarks.serve_soak import growth
from serve.command import network_of
from serve.http import ENOUGH, bind, listen, protocol
from serve.settings import Network
from tests.serve.servers import (
    ASK,
    ENDLESS,
    NAME,
    PATIENCE,
    Running,
    ask,
    connect,
    impatient,
    key,
    stopped_worker,
    until,
)


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


def until_closed(connection: socket.socket) -> None:
    """Read what is left, a part of an answer perhaps. Raises TimeoutError where the other side does not close it."""
    with suppress(ConnectionResetError):
        while connection.recv(1000):
            pass


def test_clients_that_send_too_slowly_are_let_go(guarded: Running) -> None:
    with impatient(guarded, body_seconds=0.5):
        with socket.create_connection(("127.0.0.1", guarded.port)) as slow:
            slow.sendall(b"POST /v1/comp")
            slow.settimeout(PATIENCE)
            assert slow.recv(1000) == b""
        with connect(guarded, b"{", length=100) as slow:
            slow.settimeout(PATIENCE)
            assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
            slow.sendall(b"{")  # of no use any more
            until_closed(slow)
    assert guarded.app.state.admitted == 0


def test_the_rest_of_a_body_that_was_refused_may_be_anything(guarded: Running, caplog: Any) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port)) as careless:
        careless.settimeout(PATIENCE)
        careless.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b" 401 " in careless.recv(1000).split(b"\r\n")[0]
        careless.sendall(b"no chunk\r\n")
        until_closed(careless)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_does_not_read_is_cut_off_and_frees_its_sequence(guarded: Running) -> None:
    def answered() -> float:
        figures = guarded.get("/metrics", headers=key(guarded)).text
        found = re.search(r'acorn_requests_total{path="/v1/chat/completions",status="200"} ([\d.]+)', figures)
        return float(found[1]) if found else 0

    before = answered()
    with socket.socket() as deaf, impatient(guarded, write_seconds=0.2):
        # Small segments and a small window, or the kernels of both sides take megabytes for it.
        deaf.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(PATIENCE)
        deaf.connect(("127.0.0.1", guarded.port))
        ask(deaf, guarded, json.dumps({**ENDLESS, "stream": True, "logprobs": True, "top_logprobs": 20}).encode())
        until(lambda: answered() > before)
        assert (guarded.supervisor.in_flight, guarded.app.state.admitted) == (0, 0)
        until(lambda: guarded.supervisor.stats["running"] == 0)
        with pytest.raises(ConnectionResetError):
            while deaf.recv(1 << 16):
                pass


def test_a_client_that_reads_slowly_but_reads_is_waited_for() -> None:
    due: list[tuple[Any, tuple[Any, ...]]] = []
    loop = SimpleNamespace(call_later=lambda seconds, then, *given: due.append((then, given)))
    config = uvicorn.Config(None)  # type: ignore[arg-type]
    config.load_app = lambda: None
    config.load()
    transport = MagicMock()
    connection = protocol(Network())(config, uvicorn.server.ServerState(), {}, loop)
    connection.connection_made(transport)
    transport.get_write_buffer_size.return_value = 3 * ENOUGH
    connection.pause_writing()
    for left in (2 * ENOUGH, ENOUGH, 1):
        assert not transport.abort.called
        transport.get_write_buffer_size.return_value = left
        check, given = due.pop()
        check(*given)
    assert transport.abort.called


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
