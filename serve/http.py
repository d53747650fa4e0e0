"""uvicorn, with patience that ends: for headers that do not come, and for clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.gate import Gate
from serve.settings import Network

KEEP_ALIVE = 20
"""Seconds that an idle connection stays open."""
GRACE = 5
"""Seconds that running requests get when the server is told to end."""


def protocol(network: Network) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with `network`'s limits on a connection."""

    class Patient(H11Protocol):  # type: ignore[misc]
        """Drops a connection whose client takes too long over headers, or leaves what was written to it unread."""

        _headers_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._expect_headers()
            elif self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading_due = self.loop.call_later(network.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading_due is not None:
                self._reading_due.cancel()
                self._reading_due = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._headers_due, self._reading_due):
                if timer is not None:
                    timer.cancel()
            self._headers_due = self._reading_due = None
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            if self._headers_due is None:
                self._headers_due = self.loop.call_later(network.body_seconds, self._give_up)

        def _give_up(self) -> None:
            self._headers_due = None
            if self.conn.their_state is h11.IDLE:
                self.transport.abort()

    return Patient


class Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's, which ends on SIGINT and SIGTERM and does not raise them again: that would cut the clean end short."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_server(app: Any, network: Network) -> Server:
    """A server for `app`, whose worker is somebody else's care."""
    config = uvicorn.Config(
        app,
        http=protocol(network),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    return Server(config)


def bind(network: Network) -> socket.socket:
    """A socket on the address, not yet listening. Raises ValueError if it cannot be had."""
    kind = socket.AF_INET6 if ":" in network.host else socket.AF_INET
    bound = socket.socket(kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((network.host, network.port))
    except (OSError, OverflowError) as error:  # a port beyond 65535 is the latter
        bound.close()
        raise ValueError(
            f"cannot serve at {network.host}:{network.port}: {getattr(error, 'strerror', error)}; take another --port"
        ) from None
    return bound


def listen(bound: socket.socket, backlog: int) -> None:
    """Raises ValueError where another has come to listen there while the model was loaded."""
    try:
        bound.listen(backlog)
    except OSError as error:
        host, port = bound.getsockname()[:2]
        raise ValueError(f"cannot serve at {host}:{port}: {error.strerror}; take another --port") from None


async def serve(app: Gate, network: Network, bound: socket.socket, on_ready: Callable[[Server], None]) -> None:
    """Load the model, then answer until told to end: by a signal, or by `should_exit` of the server that `on_ready` is
    given.

    Raises `serve.supervisor.WorkerDied` if the model cannot be loaded, ValueError if the address is taken by then.
    """
    supervisor = app.state.supervisor
    server = make_server(app, network)
    try:
        await supervisor.start()
        listen(bound, server.config.backlog)
        on_ready(server)
        await server.serve(sockets=[bound])
    finally:
        await supervisor.stop()
