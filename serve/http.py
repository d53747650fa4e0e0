"""uvicorn, with patience that ends: for headers that do not come, and for clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
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
ENOUGH = 64 << 10
"""Bytes that a client takes in `Network.write_seconds`, where it has not taken all: 2 kB/s, slower than any network."""


def protocol(network: Network) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with `network`'s limits on a connection."""

    class Patient(H11Protocol):  # type: ignore[misc]
        """Drops a connection whose client takes too long over a request, or leaves what was written to it unread."""

        _request_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Writing pauses at the first byte that the kernel does not take; else up to 64 kB could wait for ever.
            transport.set_write_buffer_limits(high=0)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._owes_request():
                self._expect_request()
            elif self._request_due is not None:
                self._request_due.cancel()
                self._request_due = None

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:  # the rest of a body, after its answer
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_reading()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading_due is not None:
                self._reading_due.cancel()
                self._reading_due = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._request_due, self._reading_due):
                if timer is not None:
                    timer.cancel()
            self._request_due = self._reading_due = None
            super().connection_lost(exc)

        def _owes_request(self) -> bool:
            """Headers, or a body that is of no use any more: for one that is read, `serve.gate` has the clock."""
            answered = self.cycle is not None and self.cycle.response_complete
            return self.conn.their_state is h11.IDLE or (self.conn.their_state is h11.SEND_BODY and answered)

        def _expect_request(self) -> None:
            if self._request_due is None:
                self._request_due = self.loop.call_later(network.body_seconds, self._check_request)

        def _check_request(self) -> None:
            self._request_due = None
            if self._owes_request():
                self.transport.abort()

        def _expect_reading(self) -> None:
            unread = self.transport.get_write_buffer_size()
            self._reading_due = self.loop.call_later(network.write_seconds, self._check_reading, unread)

        def _check_reading(self, before: int) -> None:
            if before - self.transport.get_write_buffer_size() >= ENOUGH:
                self._expect_reading()
                return
            # Or the kernel keeps what it has for the client, 2.6 MB on loopback, and tries for minutes.
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
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
