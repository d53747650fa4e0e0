"""The front's side of the worker: starts it, starts it again when it dies, and carries requests to it and answers back.

A request in flight when the worker dies ends with `WorkerDied`; one that comes while a worker loads waits for it. A
worker that lives and hangs is killed: it is asked for a sign of life now and then, which it gives between two turns of
its backend, and while it loads or has requests to answer it must be seen to work. What a client does not fetch yet is
kept in its flight's queue: at most `max_tokens` tokens of each request, and how many requests there are is bounded by
`serve.gate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from serve.backend import Delta
from serve.frames import Message, Unpacker, pack
from serve.pulse import Pulse
from serve.settings import Network, Settings

CHECKOUT = Path(__file__).resolve().parent.parent
LONGEST_PAUSE = 30.0
"""Seconds before a worker that dies again and again is started once more."""
SHORTEST_LIFE = 5.0
"""Seconds; a worker that lived less is started again with a growing pause."""
BEAT = 5.0
"""Seconds between two questions to a worker whether it still runs."""
LEAST_WORK = 0.002
"""Of one core, and a sixteenth of that more for each request: a worker that computes less does nothing. One whose
llama.cpp hangs answers questions, and its server's threads look after their clients once a second: 0.00008 for each of
eight was measured. One at nice 19 beside two busy processes a core gets 0.007."""


class WorkerDied(Exception):
    """The process with the model ended, or could not be started."""


class Refused(Exception):
    """The worker cannot run this request; the message is for the client."""


class Supervisor:
    """One worker at a time. Start it with `await start()`, end it with `await stop()`."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self.settings = settings
        self.context = settings.context
        self.stats: dict[str, int] = {}
        """The worker's newest figures (`engine.requests.Stats`)."""
        self.restarts = 0
        self.hangs = 0
        """Workers killed for their silence; they count among the restarts too."""
        self.trouble: str | None = None
        """Why there is no worker that is ready; None while there is one, or while the first loads."""
        self.silent_seconds = network.silent_seconds
        self._ready_seconds = network.ready_seconds
        self._heard = self._excused = self._moved = False
        self._hung: str | None = None
        self._ready = asyncio.Event()
        self._flights: dict[int, Flight] = {}
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """Of the worker now running."""
        return None if self._process is None else self._process.pid

    @property
    def in_flight(self) -> int:
        """Pieces of work that the worker has not finished."""
        return len(self._flights)

    async def start(self) -> None:
        """Start a worker and wait until it has loaded the model. Raises WorkerDied with its reason if it does not."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running(first))
        await asyncio.wait({self._task, first}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            self._task.result()
        await first

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def open(self, requests: Sequence[tuple[Message, bytes]]) -> Flight:
        """Send pieces of work (a submit message without op and id, and token ids) and return where answers arrive.

        Waits for a worker that is loading. Raises WorkerDied if it takes too long, ValueError for a message that
        cannot be sent.
        """
        frames = []
        for message, ids in requests:
            number = next(self._numbers)
            frames.append((number, pack({"op": "submit", "id": number, **message}, ids)))
        while not self._ready.is_set():
            try:
                await asyncio.wait_for(self._ready.wait(), self._ready_seconds)
            except TimeoutError:
                raise WorkerDied("the model's process is not ready; ask again later") from None
        flight = Flight(self, {number: index for index, (number, _) in enumerate(frames)})
        for number, frame in frames:
            self._flights[number] = flight
            self._send(frame)
        return flight

    def forget(self, numbers: Sequence[int]) -> None:
        """Cancel pieces of work in the worker."""
        for number in numbers:
            if self._flights.pop(number, None) is not None:
                self._send(pack({"op": "cancel", "id": number}))

    def _send(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    async def _keep_running(self, first: asyncio.Future[None]) -> None:
        failures = 0
        while True:
            born = time.monotonic()
            try:
                reason = await self._one_life(first)
            except (OSError, ValueError) as error:  # no process or no memory for one; a message that is none
                reason = f"the model's process is lost: {error}"
            if not first.done():  # it never was ready: a model that cannot be loaded will not be the next time
                first.set_exception(WorkerDied(reason))
                return
            failures = 0 if time.monotonic() - born > SHORTEST_LIFE else failures + 1
            self.restarts += 1
            self.trouble = self._hung or "the model's process ended"
            print(f"serve: {reason}; starting it again", file=sys.stderr, flush=True)
            await asyncio.sleep(min(LONGEST_PAUSE, 0.25 * 2**failures) if failures else 0)

    async def _one_life(self, first: asyncio.Future[None]) -> str:
        """Start a worker and read from it until it ends; why it did."""
        ours, theirs = socket.socketpair()
        watch, self._hung = None, None
        try:
            with theirs:
                # -P: a folder named "engine" where the user happens to be must not be taken for acorn's.
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "serve.worker", str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    env=_environment(self.settings),
                )
            reader, self._writer = await asyncio.open_connection(sock=ours)
            self._send(pack({"op": "start", "settings": self.settings.to_message()}))
            watch = asyncio.create_task(self._watch(self._process))
            reason = await self._read(reader, first)
            code = await self._process.wait()
            return self._hung or reason or f"the model's process ended (exit code {code})"
        finally:
            if watch is not None:
                watch.cancel()
            self._ready.clear()
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            ours.close()
            await _end(self._process)
            self._fail_all()

    async def _read(self, reader: asyncio.StreamReader, first: asyncio.Future[None]) -> str | None:
        unpacker, reason = Unpacker(), None
        while data := await _some(reader):
            self._heard, self._excused = True, False
            for message, _ in unpacker.feed(data):
                self._moved |= message["op"] != "pong" and message.get("deltas") != []
                if message["op"] == "deltas":
                    self._deliver(message)
                elif message["op"] == "refused":
                    self._to_flight(message["id"], Refused(message["message"]))
                elif message["op"] == "ready":
                    self.context = message["context"]
                    # What the first worker has settled is so for those that follow it.
                    self.settings = Settings.from_message(message["settings"])
                    self.trouble = None
                    self._ready.set()
                    if not first.done():
                        first.set_result(None)
                elif message["op"] == "loading":
                    self._excused = True
                elif message["op"] == "failed":
                    reason = f"the model's process could not start: {message['message']}"
        return reason

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a worker that for `silent_seconds` gives no sign of life, or does nothing of what it owes.

        Loading, of the model and later of a verifier, takes as long as it takes, and so does a prompt, as long as the
        operating system sees the worker work. Time is counted in beats of this loop and not by the clock: for a laptop
        that slept, or a server that was stopped with its worker (Ctrl-Z) and goes on, it is one beat.
        """
        pulse, silent, still, owing = Pulse(process.pid), 0.0, 0.0, ""
        while max(silent, still) < self.silent_seconds:
            beat, self._heard, self._moved = min(BEAT, self.silent_seconds / 4), False, False
            if self.ready:
                self._send(pack({"op": "ping"}))
            await asyncio.sleep(beat)
            loading = not self.ready or self._excused
            silent = 0.0 if self._heard or loading else silent + beat
            owing = "while it loaded" if loading else "with requests to answer" if self._flights else ""
            enough = self.silent_seconds * LEAST_WORK * (1 + len(self._flights) / 16)
            if self._moved or not owing or await asyncio.to_thread(pulse.beats, enough):
                still = 0.0
            else:
                still += beat
        self.hangs += 1
        fault = "was silent" if silent >= self.silent_seconds else f"neither computed nor read anything {owing}"
        self._hung = f"the model's process {fault} for {self.silent_seconds:g} s and was killed"
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            process.kill()

    def _deliver(self, message: Message) -> None:
        self.stats = message.get("stats", self.stats)
        for number, *fields in message["deltas"]:
            delta = Delta(number, *fields)
            self._to_flight(number, delta if delta.error is None else Refused(delta.error))

    def _to_flight(self, number: int, news: Delta | Refused | WorkerDied) -> None:
        flight = self._flights.get(number)
        if flight is None:
            return  # cancelled while this was under way
        if not isinstance(news, Delta) or news.finish is not None:
            del self._flights[number]
        flight.put(number, news)

    def _fail_all(self) -> None:
        for number in list(self._flights):
            message = "the model's process ended while this request ran; it is being started again, so send it again"
            self._to_flight(number, WorkerDied(message))


class Flight:
    """The answers to one request's pieces of work; leaving it cancels what is not finished."""

    def __init__(self, supervisor: Supervisor, places: dict[int, int]) -> None:
        self._supervisor, self._places = supervisor, places
        self._open = set(places)
        self._queue: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()

    async def __aenter__(self) -> Flight:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.forget(list(self._open))

    def put(self, number: int, news: Delta | Exception) -> None:
        self._queue.put_nowait((number, news))

    def cancel(self, place: int) -> None:
        """The piece of work at `place` is not wanted any more."""
        number = next(number for number, at in self._places.items() if at == place)
        self._open.discard(number)
        self._supervisor.forget([number])

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """`(place, delta)` until all pieces are finished or cancelled. Raises Refused or WorkerDied."""
        while self._open:
            number, news = await self._queue.get()
            if number not in self._open:
                continue
            if isinstance(news, Exception):
                self._open.discard(number)
                raise news
            if news.finish is not None:
                self._open.discard(number)
            yield self._places[number], news


async def _some(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return await reader.read(1 << 20)
    return b""


async def _end(process: asyncio.subprocess.Process | None) -> None:
    """Its socket is closed, which ends it; killed if that takes 3 seconds."""
    if process is None or process.returncode is not None:
        return
    try:
        await asyncio.wait_for(process.wait(), 3)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment(settings: Settings) -> dict[str, Any]:
    """Of the worker: this checkout's packages, and as many threads as the settings say from the first import on."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(settings.threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
