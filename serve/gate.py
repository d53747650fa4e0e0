"""Who gets in, and how much of it: what is checked of a request before the application sees it.

In this order: the Host header (a page of another site whose name was pointed at this machine must not talk to a server
on loopback), the API key, the content type (anything but JSON a browser sends across sites without asking first), room
for one more request, the size of the body and the time it takes. A request that is refused for lack of room is
refused before its body is read, and the bodies of all requests together are bounded, so memory is.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve.errors import ApiError, invalid
from serve.settings import Network
from serve.state import State

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = ("/v1/", "/metrics", "/tokenize", "/openapi.json")
"""Paths that want the API key. The others are the page and /health, which say nothing about anybody's text."""


SHARE = "acorn.share"
"""Where in the scope of a request its `Share` is."""


class Gate:
    """ASGI middleware, and so the application as a server sees it.

    Requests answered at once, running and waiting ones together, are as many as the settings have rows and places to
    wait. Whoever asks for several answers takes further places once its body is read (`serve.routes`).
    """

    def __init__(self, app: App, network: Network, state: State) -> None:
        self._app, self._network, self._metrics = app, network, state.metrics
        self.state = state
        self._loopback = is_loopback(network.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watch(event: Any) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                event["headers"] = [*event.get("headers", []), *_headers(scope["path"])]
            await send(event)

        try:
            try:
                await self._pass(scope, receive, watch)
            except ApiError as error:
                await error.response()(scope, receive, watch)
        finally:
            # No other path may become a label: clients would fill the memory with them.
            path = scope["path"] if scope["path"] in ("/v1/chat/completions", "/v1/completions") else "other"
            self._metrics.requests.labels(path, status).inc()
            if path != "other":
                self._metrics.whole.observe(time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers.get(b"host", ""))
        if scope["path"].startswith(GUARDED):
            self._check_key(headers.get(b"authorization", ""))
        if scope["method"] != "POST":
            # HEAD is GET for the application, and uvicorn, whose scope still says HEAD, leaves the body out.
            await self._app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, send)
            return
        self._check_type(headers)
        with Share(self.state, self._network.all_bodies) as share:
            share.admit(1)
            body = await self._body(headers, receive, share)
            scope[SHARE] = share
            await self._app(scope, _again(body, receive), send)

    def _check_host(self, host: str) -> None:
        if self._loopback and host and not is_loopback(_name(host)):
            raise ApiError(403, f"this server is for its own machine; '{host[:100]}' is not a name of it")

    def _check_key(self, given: str) -> None:
        key = self._network.api_key
        scheme, _, own = given.partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(own.strip().encode(), (key or "").encode())
        if key is not None and not known:
            raise ApiError(401, "send the server's API key as 'Authorization: Bearer KEY'", code="invalid_api_key")

    def _check_type(self, headers: dict[bytes, str]) -> None:
        kind = headers.get(b"content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the content type is '{kind[:100]}'; send JSON as 'Content-Type: application/json'")
        coding = headers.get(b"content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise ApiError(415, f"the content encoding is '{coding[:100]}'; send the body as it is, not compressed")

    async def _body(self, headers: dict[bytes, str], receive: Receive, share: Share) -> bytes:
        most = self._network.max_body
        declared = headers.get(b"content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(f"{int(declared)} bytes", most)
        try:
            async with asyncio.timeout(self._network.body_seconds):
                return await _read(receive, most, share)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive in {self._network.body_seconds:g} s") from None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine as seen from itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].split("]")[0]
    return host.split(":")[0]


class Share:
    """What one request takes of the server: places, and the bytes of its body among `most` of all requests."""

    def __init__(self, state: State, most: int) -> None:
        self._state, self._most, self._bytes, self._places = state, most, 0, 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._state.held -= self._bytes
        self._state.admitted -= self._places

    def admit(self, count: int) -> None:
        """Take places for `count` answers. Raises ApiError: 400 for more than there are, 429 if they are not free."""
        settings = self._state.supervisor.settings
        places = settings.rows + settings.max_waiting
        if self._places + count > places:
            raise invalid(f"{self._places + count} answers are asked for; this server has places for {places}", "n")
        if self._state.admitted + count > places:
            raise ApiError(429, f"the {places} places for running and waiting answers are taken; try again in a second")
        self._state.admitted += count
        self._places += count

    def take(self, count: int) -> None:
        """Raises ApiError (429) where the others leave no room."""
        if self._state.held + count > self._most:
            raise ApiError(429, f"the bodies of all requests together are {self._most} bytes; try again in a second")
        self._state.held += count
        self._bytes += count


async def _read(receive: Receive, most: int, share: Share) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ApiError(400, "the connection was closed before the body was whole")
        part = event.get("body", b"")
        if len(body) + len(part) > most:
            raise _too_large("more", most)
        share.take(len(part))
        body += part
        if not event.get("more_body", False):
            return bytes(body)


def _too_large(size: str, most: int) -> ApiError:
    return ApiError(413, f"the body has {size}, the limit is {most} bytes; send a shorter prompt")


def _again(body: bytes, receive: Receive) -> Receive:
    """A channel that gives the body once more, and then whatever comes."""
    given = False

    async def receive_again() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again


def _headers(path: str) -> list[tuple[bytes, bytes]]:
    """No other site may frame the page or have it load anything."""
    headers = [(b"x-content-type-options", b"nosniff")]
    if not path.startswith("/v1/"):
        policy = b"default-src 'self'; style-src 'self'; script-src 'self'; "
        headers.append((b"content-security-policy", policy + b"img-src 'self' data:; frame-ancestors 'none'"))
    return headers
