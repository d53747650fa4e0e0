"""A server in a thread of the test, its worker a real process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from serve.app import create_app
from serve.http import Server, bind, serve
from serve.settings import Network, Settings
from serve.supervisor import Supervisor

NAME = "tiny"
PATIENCE = 300
"""Seconds for what must come about: no machine is so slow, and a test that fails may take its time."""
POSITIONS = 1 << 17
"""Of an endless model. To fill them takes minutes on any machine: the work of attention grows with their square."""

ASK = [{"role": "user", "content": "So?"}]
ENDLESS = {"model": NAME, "messages": ASK, "max_tokens": POSITIONS // 2, "temperature": 0}
"""To the guarded server: what runs until it is cancelled, on the fastest machine too."""


def endless_model(model: Path, folder: Path) -> Path:
    """A copy of the tiny model whose answers at temperature 0 do not end while a test runs.

    Untrained, with tied embeddings, it says the last token again and again; only the context ends that.
    """
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


def until(condition: Callable[[], bool]) -> None:
    """Wait for what stays once it has come about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


def settings_of(model: Path, **changed: Any) -> Settings:
    """Small enough for two busy cores."""
    settings = Settings(
        model=model,
        engine="torch",
        device="cpu",
        dtype="float32",
        context=1024,
        kv_tokens=8192,
        chunk=256,
        rows=4,
        threads=1,
        max_waiting=16,
    )
    return replace(settings, **changed)


class Running:
    """A server that answers; `loop` is its event loop."""

    def __init__(self, settings: Settings, network: Network | None = None) -> None:
        self.network = network or Network(port=0)
        self.app = create_app(settings, self.network, [NAME, "another-name"])
        self._bound = bind(self.network)
        self.port = int(self._bound.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.loop: asyncio.AbstractEventLoop
        self._server: Server | None = None
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Running:
        self._thread.start()
        assert self._up.wait(500), "the server is not up after 500 s"
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    @property
    def supervisor(self) -> Supervisor:
        return self.app.state.supervisor

    def client(self, **options: Any) -> OpenAI:
        options = {"api_key": self.network.api_key or "none", "max_retries": 0, "timeout": PATIENCE, **options}
        return OpenAI(base_url=f"{self.url}/v1", **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE, **options)

    def _run(self) -> None:
        try:
            asyncio.run(serve(self.app, self.network, self._bound, self._ready))
        except BaseException as error:
            self._failure = error
        finally:
            self._up.set()

    def _ready(self, server: Server) -> None:
        self._server, self.loop = server, asyncio.get_running_loop()
        self._up.set()


@contextmanager
def running(settings: Settings, network: Network | None = None) -> Iterator[Running]:
    server = Running(settings, network).start()
    try:
        yield server
    finally:
        server.stop()


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


def ask(connection: socket.socket, server: Running, content: bytes, length: int | None = None) -> None:
    """Send a request for a chat completion with `content`, declared as `length` bytes."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.network.api_key}\r\n"
    )
    head += f"Content-Type: application/json\r\nContent-Length: {length or len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)


def connect(server: Running, content: bytes, length: int | None = None) -> socket.socket:
    """A connection on which that was asked for."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    ask(connection, server, content, length)
    return connection


def key(server: Running) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.network.api_key}"}


def give_up_after(supervisor: Supervisor, seconds: float) -> None:
    """The worker that there is now is killed after so many seconds; for those that follow, patience is as it was."""
    patience, process = supervisor.silent_seconds, supervisor._process
    assert process is not None
    kill = process.kill

    def kill_and_calm_down() -> None:
        supervisor.silent_seconds = patience
        kill()

    process.kill = kill_and_calm_down  # type: ignore[method-assign]
    supervisor.silent_seconds = seconds
