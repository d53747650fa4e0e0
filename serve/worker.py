"""The process that owns the model: `python -m serve.worker DESCRIPTOR`, started by `serve.supervisor`.

The descriptor is one end of a socket pair. The worker reads its settings, loads the model, says "ready", and from then
on looks for messages between the turns of its backend. It ends when the socket does, and is killed with its parent.

    front -> worker   {"op": "start", "settings"}  {"op": "submit", "id", ...} + ids   {"op": "cancel", "id"}
                      {"op": "ping"}
    worker -> front   {"op": "ready", "context", "settings"}   {"op": "failed", "message"}
                      {"op": "refused", "id", "message"}   {"op": "deltas", "deltas": [...], "stats"}
                      {"op": "pong"}   {"op": "loading"}: it will be silent until that is done
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.interface import Sampling
from serve.backend import Backend, Work, load_backend
from serve.frames import Message, Unpacker, pack
from serve.settings import Settings

STATS_EVERY = 0.25
"""Seconds between figures while there is work."""


def main() -> None:
    from acorn.worker import die_with_parent

    die_with_parent()
    # Ctrl-C reaches the whole terminal; the front decides when the worker goes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    started, _ = channel.first()
    settings = Settings.from_message(started["settings"])
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    try:
        backend = load_backend(settings, lambda: channel.send({"op": "loading"}))
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        channel.send({"op": "failed", "message": str(error)})
        raise
    channel.send({"op": "ready", "context": backend.context, "settings": backend.settings.to_message()})
    try:
        Worker(channel, backend).run()
    finally:
        backend.close()


class Gone(Exception):
    """The front closed its end."""


class Channel:
    """The worker's end of the socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unpacker = Unpacker()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        self._socket.sendall(pack(message))

    def receive(self) -> list[tuple[Message, bytes]]:
        """The messages that one read completes; blocks if there is nothing to read. Raises Gone."""
        data = self._socket.recv(1 << 20)
        if not data:
            raise Gone
        return list(self._unpacker.feed(data))

    def first(self) -> tuple[Message, bytes]:
        while True:
            for frame in self.receive():
                return frame


class Worker:
    """The loop between the front and one backend."""

    def __init__(self, channel: Channel, backend: Backend) -> None:
        self._channel, self._backend = channel, backend
        self._handles: dict[int, int] = {}  # the front's id -> the backend's handle
        self._ids: dict[int, int] = {}
        self._told = 0.0

    def run(self) -> None:
        """Until the front is gone."""
        try:
            while True:
                self._listen()
                self._pass_on()
        except (Gone, BrokenPipeError, ConnectionResetError):
            return

    def _listen(self) -> None:
        """Take in messages: those that are there, or where nothing is to be done, wait for one."""
        files = [self._channel.fileno(), *self._backend.files]
        patience = 0 if self._backend.busy else None
        while True:
            readable, _, _ = select.select(files, [], [], patience)
            if self._channel.fileno() not in readable:
                return
            for message, ids in self._channel.receive():
                self._obey(message, ids)
            patience = 0

    def _obey(self, message: Message, ids: bytes) -> None:
        if message["op"] == "ping":
            self._channel.send({"op": "pong"})
            return
        number = message["id"]
        if message["op"] == "cancel":
            if (handle := self._handles.pop(number, None)) is not None:
                del self._ids[handle]
                self._backend.cancel(handle)
            return
        try:
            handle = self._backend.submit(work_of(message, ids))
        except ValueError as error:
            self._channel.send({"op": "refused", "id": number, "message": str(error)})
            return
        self._handles[number] = handle
        self._ids[handle] = number

    def _pass_on(self) -> None:
        deltas = []
        for delta in self._backend.turn():
            if (number := self._ids.get(delta.handle)) is None:
                continue  # cancelled meanwhile
            deltas.append([number, *delta.to_message()[1:]])
            if delta.last:
                del self._ids[delta.handle], self._handles[number]
        now = time.monotonic()
        message: dict[str, Any] = {"op": "deltas", "deltas": deltas}
        if not self._ids or now - self._told > STATS_EVERY:
            self._told = now
            message["stats"] = asdict(self._backend.stats())
        if deltas or "stats" in message:
            self._channel.send(message)


def work_of(message: Message, ids: bytes) -> Work:
    """The piece of work in a submit message."""
    return Work(
        ids=tuple(np.frombuffer(ids, np.uint32).tolist()),
        sampling=Sampling(**message["sampling"]),
        max_tokens=message["max_tokens"],
        seed=message["seed"],
        schema=message.get("schema"),
        cache=message.get("cache", True),
        search=message.get("search"),
    )


if __name__ == "__main__":
    main()
