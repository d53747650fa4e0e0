"""HTTP as odd, old and careful clients speak it."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import h11
import httpx
import pytest

from tests.serve.servers import ASK, PATIENCE, Running

BODY = {"messages": ASK, "max_tokens": 3, "seed": 1}
JSON = {"Content-Type": "application/json"}


def request(body: dict[str, Any], version: str = "1.1", **headers: str) -> bytes:
    """A request for a chat completion."""
    content = json.dumps(body).encode()
    given = {"Host": "localhost", **JSON, "Content-Length": str(len(content)), **headers}
    lines = [f"POST /v1/chat/completions HTTP/{version}", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def answers(server: Running, sent: bytes, count: int = 1) -> list[tuple[int, bytes]]:
    """Status and body of `count` answers on one connection, which is then closed by the server."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(sent)
        data = b""
        while part := connection.recv(1 << 16):
            data += part
    reader = h11.Connection(h11.CLIENT)
    reader.receive_data(data)
    reader.receive_data(b"")
    found = []
    for _ in range(count):
        reader.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
        reader.send(h11.EndOfMessage())
        status, body = 0, b""
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.InformationalResponse | h11.Response | h11.Data), event
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        found.append((status, body))
        if reader.our_state is h11.DONE and reader.their_state is h11.DONE:
            reader.start_next_cycle()
    return found


def text_of(body: bytes) -> str:
    return str(json.loads(body)["choices"][0]["message"]["content"])


def test_http_1_0_gets_a_stream_that_ends_with_the_connection(served: Running) -> None:
    [(status, body)] = answers(served, request({**BODY, "stream": True}, version="1.0"))
    assert status == 200
    assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")


def test_requests_in_one_packet_are_answered_in_their_order(served: Running) -> None:
    alone = text_of(answers(served, request(BODY, Connection="close"))[0][1])
    first, second, third = answers(
        served, request(BODY) + request({**BODY, "stream": True}) + request({}, Connection="close"), 3
    )
    assert (first[0], text_of(first[1])) == (200, alone)
    assert second[1].endswith(b"data: [DONE]\n\n")
    assert third[0] == 400


def test_a_body_that_waits_for_leave_to_come_gets_it(served: Running) -> None:
    head, body = request(BODY, Connection="close", Expect="100-continue").split(b"\r\n\r\n", 1)
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_offers_http_2_gets_http_1(served: Running) -> None:
    """Java's does so with every request."""
    offer = {"Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"}
    offered = request(BODY, Connection="Upgrade, HTTP2-Settings", **offer)
    first, second = answers(served, offered + request(BODY, Connection="close"), 2)
    assert (first[0], text_of(first[1])) == (200, text_of(second[1]))


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/openapi.json", "/"])
def test_head_says_what_get_says_without_the_body(served: Running, path: str) -> None:
    whole, head = served.get(path), httpx.head(served.url + path, timeout=PATIENCE)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_a_body_that_is_compressed_is_415(served: Running) -> None:
    content = gzip.compress(json.dumps(BODY).encode())
    headers = {**JSON, "Content-Encoding": "gzip"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=content, headers=headers, timeout=PATIENCE)
    assert (answer.status_code, "not compressed" in answer.json()["error"]["message"]) == (415, True)


def test_a_base_url_without_v1_is_told_so(served: Running) -> None:
    for answer in (served.post("/chat/completions", BODY), served.get("/models")):
        assert answer.status_code in (404, 405)
        assert "the API begins with /v1: ask /v1/" in answer.json()["error"]["message"]
