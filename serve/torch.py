"""The backend for model folders: `engine.serving.ServingEngine` on transformers, JSON schemas by `engine.grammar`."""

from __future__ import annotations

from typing import Any

import torch

from engine.requests import Constraint, Event, Request, Stats
from engine.serving import ServingEngine
from serve.backend import Delta, Work
from serve.settings import Settings


class TorchBackend:
    """`serve.backend.Backend`."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._folder = settings.model
        # Half for those that run, but a whole context; what is left for the prefix cache.
        running = min(settings.kv_tokens, max(settings.context, settings.kv_tokens // 2))
        self._engine = ServingEngine(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            context=settings.context,
            tokens=running,
            cache_tokens=settings.kv_tokens - running,
            rows=settings.rows,
            chunk=settings.chunk,
        )
        self._grammars: Any = None

    @property
    def context(self) -> int:
        return self._engine.context

    @property
    def busy(self) -> bool:
        return not self._engine.idle

    @property
    def files(self) -> list[int]:
        return []

    def submit(self, work: Work) -> int:
        if work.search is not None:
            raise ValueError("search is not served here: leave the field out")
        return self._engine.submit(
            Request(
                prompt=work.ids,
                sampling=work.sampling,
                max_tokens=work.max_tokens,
                seed=work.seed,
                constraint=None if work.schema is None else self._constraint(work.schema),
                cache=work.cache,
            )
        )

    def cancel(self, handle: int) -> None:
        self._engine.cancel(handle)

    def turn(self) -> list[Delta]:
        return [_delta(event) for event in self._engine.turn()]

    def stats(self) -> Stats:
        return self._engine.stats

    def close(self) -> None:
        """Nothing is left when the process ends."""

    def _constraint(self, schema: dict[str, Any]) -> Constraint:
        """Raises ValueError for a schema that is not supported."""
        if self._grammars is None:
            from engine.grammar import Grammars  # type: ignore[import-not-found]

            self._grammars = Grammars(self._folder, self._engine.vocab, self._engine.end_ids)
        constraint: Constraint = self._grammars.json_schema(schema).start()
        return constraint


def _delta(event: Event) -> Delta:
    return Delta(event.handle, event.ids, event.logprobs, event.top, event.finish, event.cached, error=event.error)
