"""`engine.interface.Engine` over a `ServingEngine` that another thread owns: search beside everybody else's requests.

    mailbox = Mailbox(serving, wake)           # the owner's; nobody else touches `serving`
    while ...:                                 # the owner's loop
        mailbox.take()                         # submits what threads have asked for, and runs their calls
        for event in serving.turn():
            if not mailbox.deliver(event):     # a thread's; the others are the owner's
                ...

    engine = SharedEngine(mailbox)             # a thread's, of one search
    search(engine, OnOwner(mailbox, verifier), ...)

The rows of a step are requests like all others: they share the batch, the memory and the prefix cache. Every step sends
a sequence's ids again, and all but the last token of them are cached (`engine.resubmit`). Unlike with a foreign server,
the tokens are those of `engine.torch.TorchEngine`: each is a function of logits, seed and position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Lock
from typing import Any, TypeVar

from engine import requests
from engine.interface import Sampling, Usage, Verifier
from engine.requests import Event
from engine.resubmit import Completion, Growing, Request, ResubmitEngine, ResubmittedSeq, Stops
from engine.serving import ServingEngine

T = TypeVar("T")


class Cancelled(Exception):
    """The search was cancelled (`SharedEngine.cancel`), or the engine closed."""


@dataclass(eq=False)
class _Job:
    """Requests of one call, which end together."""

    asked: Sequence[requests.Request]
    cancelled: Flag
    done: Future[list[list[Event]]] = field(default_factory=Future)
    events: dict[int, list[Event]] = field(default_factory=dict)
    """Of each request, by handle in the order of `asked`."""


class Mailbox:
    """Between the thread that owns a `ServingEngine` and those that want something of it.

    `take`, `deliver` and `close` are for the owner, the others for any thread. `wake` is called from any thread when
    something was posted, for an owner that sleeps while its engine is idle.
    """

    def __init__(self, serving: ServingEngine, wake: Callable[[], None] = lambda: None) -> None:
        self.serving, self.wake = serving, wake
        self._posted: SimpleQueue[tuple[Callable[[], None], Future[Any]]] = SimpleQueue()
        self._lock, self._closed = Lock(), False
        self._jobs: dict[int, _Job] = {}  # by handle; the owner's alone

    def take(self) -> None:
        """Do what was asked since the last time, and end what was cancelled."""
        for job in {id(job): job for job in self._jobs.values() if job.cancelled.is_set()}.values():
            self._end(job, Cancelled("the search was cancelled"))
        while (posted := self._next()) is not None:
            posted[0]()

    def deliver(self, event: Event) -> bool:
        """Take an event that belongs to a thread's request; False for another."""
        job = self._jobs.get(event.handle)
        if job is None:
            return False
        job.events[event.handle].append(event)
        if event.error is not None:
            self._end(job, RuntimeError(event.error))
        elif all(events and events[-1].finish for events in job.events.values()):
            self._forget(job)
            job.done.set_result(list(job.events.values()))
        return True

    def close(self) -> None:
        """End all that waits with `Cancelled`, now and later; the owner calls it after its loop."""
        with self._lock:
            self._closed = True
        while (posted := self._next()) is not None:
            posted[1].set_exception(Cancelled("the engine was closed"))
        for job in {id(job): job for job in self._jobs.values()}.values():
            self._end(job, Cancelled("the engine was closed"))

    def run(self, asked: Sequence[requests.Request], cancelled: Flag) -> list[list[Event]]:
        """Wait for the events of requests, by request.

        Raises Cancelled, ValueError for a request that cannot be run, RuntimeError for one that failed; what else was
        asked in the call is cancelled then.
        """
        if not asked:
            return []
        job = _Job(asked, cancelled)
        return self._post(lambda: self._submit(job), job.done)

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises, run on the owner's thread between two turns (which must not call this)."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # raised again in the thread that waits
                done.set_exception(error)

        return self._post(run, done)

    def _post(self, action: Callable[[], None], done: Future[T]) -> T:
        with self._lock:
            if self._closed:
                raise Cancelled("the engine was closed")
            self._posted.put((action, done))
        self.wake()
        return done.result()

    def _next(self) -> tuple[Callable[[], None], Future[Any]] | None:
        try:
            return self._posted.get_nowait()
        except Empty:
            return None

    def _submit(self, job: _Job) -> None:
        try:
            for request in job.asked:
                handle = self.serving.submit(request)
                job.events[handle] = []
                self._jobs[handle] = job
        except Exception as error:  # raised again in the thread that waits
            self._end(job, error)

    def _end(self, job: _Job, error: Exception) -> None:
        for handle in job.events:
            self.serving.cancel(handle)
        self._forget(job)
        job.done.set_exception(error)

    def _forget(self, job: _Job) -> None:
        for handle in job.events:
            del self._jobs[handle]


class SharedEngine(ResubmitEngine):
    """An `Engine` for one thread, on the owner's model. `usage` does not count what a preempted sequence ran again.

    Without `cache` (`Request.cache`) nothing is left behind, and every step runs its whole sequences again.
    """

    def __init__(self, mailbox: Mailbox, cache: bool = True) -> None:
        serving = mailbox.serving
        super().__init__(serving.context, serving.vocab, serving.end_ids)
        self._mailbox, self._cache, self._cancelled = mailbox, cache, Flag()

    def cancel(self) -> None:
        """From any thread: end the call that is running, and all later ones, with `Cancelled`."""
        self._cancelled.set()
        self._mailbox.wake()

    def _request(self, seq: ResubmittedSeq, new: Growing, limit: int) -> Request:
        ids = seq.ids + new.ids
        return Request(ids, seq.prompt, seq.seed, min(limit - len(new.ids), self.context - len(ids)))

    def _complete(self, asked: Sequence[Request], sampling: Sampling, stop: Stops) -> list[Completion]:
        if self._cancelled.is_set():
            raise Cancelled("the search was cancelled")
        stops = tuple(tuple(tokens) for tokens in stop)
        rows = [
            requests.Request(tuple(one.ids), sampling, one.limit, one.seed, stops, cache=self._cache) for one in asked
        ]
        answers = self._mailbox.run(rows, self._cancelled)
        return [_completion(one, events) for one, events in zip(asked, answers, strict=True)]


class OnOwner:
    """A `Verifier` whose calls run on the owner's thread, between its turns."""

    def __init__(self, mailbox: Mailbox, verifier: Verifier) -> None:
        self._call, self._verifier = mailbox.call, verifier

    def open(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        return self._call(lambda: self._verifier.open(prompts))

    def fork(self, seq: Any, count: int) -> list[Any]:
        return self._call(lambda: self._verifier.fork(seq, count))

    def extend(self, seqs: Sequence[Any], steps: Sequence[Sequence[int]]) -> list[float]:
        return self._call(lambda: self._verifier.extend(seqs, steps))

    def read(self, seqs: Sequence[Any], paths: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        return self._call(lambda: self._verifier.read(seqs, paths))

    def close(self, seqs: Sequence[Any]) -> None:
        self._call(lambda: self._verifier.close(seqs))

    def usage(self) -> Usage:
        return self._call(self._verifier.usage)


def _completion(asked: Request, events: Sequence[Event]) -> Completion:
    ids = [token for event in events for token in event.ids]
    return Completion(
        ids,
        [logprob for event in events for logprob in event.logprobs],
        [list(pairs) for event in events for pairs in event.top],
        asked.spent(len(asked.ids) - (events[0].cached or 0), len(ids)),
    )
