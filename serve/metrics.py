"""Prometheus figures of one server, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.supervisor import Supervisor

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """What the front counts itself; `render` adds the worker's figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("acorn_requests", "Answered requests", ["path", "status"], **own)
        self.tokens = Counter(
            "acorn_tokens", "Tokens of prompts, of completions, and of prompts from the prefix cache", ["kind"], **own
        )
        self.first = Histogram("acorn_first_token_seconds", "Time to the first token", buckets=_SECONDS, **own)
        self.between = Histogram("acorn_next_token_seconds", "Time from token to token", buckets=_SECONDS, **own)
        self.whole = Histogram("acorn_request_seconds", "Time of a whole request", buckets=_SECONDS, **own)
        self._admitted = Gauge("acorn_admitted_requests", "Requests now being answered", **own)
        self._ready = Gauge("acorn_worker_ready", "1 where the worker has the model loaded", **own)
        self._restarts = Gauge("acorn_worker_restarts", "Times that the worker was started again", **own)
        self._hangs = Gauge("acorn_worker_hangs", "Times that a worker was killed for its silence", **own)
        self._worker = Gauge("acorn_engine", "The engine's own figures (engine.requests.Stats)", ["figure"], **own)

    def render(self, supervisor: Supervisor, admitted: int) -> bytes:
        """The text form."""
        self._admitted.set(admitted)
        self._ready.set(supervisor.ready)
        self._restarts.set(supervisor.restarts)
        self._hangs.set(supervisor.hangs)
        for name, value in supervisor.stats.items():
            self._worker.labels(name).set(value)
        return bytes(generate_latest(self.registry))
