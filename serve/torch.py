"""The backend for model folders: `engine.serving.ServingEngine` on transformers, schemas by `engine.grammar`,
searches by `serve.search`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.load import end_ids_in, load_model, load_tree
from engine.requests import Constraint, Event, Request, Stats
from engine.serving import ServingEngine
from serve.backend import Delta, Work
from serve.probe import before_loading, settle
from serve.search import Searches
from serve.settings import Settings
from serve.sizes import folder_size
from serve.verifiers import Verifiers


class TorchBackend:
    """`serve.backend.Backend`."""

    def __init__(self, settings: Settings, announce: Callable[[], None] = lambda: None) -> None:
        settings = before_loading(settings)
        torch.set_num_threads(settings.threads)
        model = load_model(settings.model, settings.device, settings.dtype)
        if settings.unsettled:
            reserve = 0 if settings.verifier is None else folder_size(settings.verifier).weights("float32")
            settings = settle(settings, load_tree(model, settings.context), reserve)
        self.settings = settings
        # Half for those that run, but a whole context; what is left for the prefix cache.
        running = min(settings.kv_tokens, max(settings.context, settings.kv_tokens // 2))
        self._engine = ServingEngine(
            model,
            context=settings.context,
            end_ids=end_ids_in(model, settings.model),
            tokens=running,
            cache_tokens=settings.kv_tokens - running,
            rows=settings.rows,
            chunk=settings.chunk,
        )
        self._announce = announce
        self._grammars: Any = None
        self._searches: Searches | None = None

    @property
    def context(self) -> int:
        return self._engine.context

    @property
    def busy(self) -> bool:
        return not self._engine.idle or (self._searches is not None and self._searches.busy)

    @property
    def files(self) -> list[int]:
        return []

    def submit(self, work: Work) -> int:
        if work.search is not None:
            return self._search().submit(work)
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
        if handle < 0:
            self._search().cancel(handle)
        else:
            self._engine.cancel(handle)

    def turn(self) -> list[Delta]:
        searches = self._searches
        if searches is None:
            return [_delta(event) for event in self._engine.turn()]
        deltas = [_delta(event) for event in self._engine.turn() if not searches.take(event)]
        return deltas + searches.turn()

    def stats(self) -> Stats:
        return self._engine.stats

    def close(self) -> None:
        """Nothing is left when the process ends."""

    def _constraint(self, schema: dict[str, Any]) -> Constraint:
        """Raises ValueError for a schema that is not supported."""
        if self._grammars is None:
            from engine.grammar import Grammars

            self._grammars = Grammars(self.settings.model, self._engine.vocab, self._engine.end_ids)
        constraint: Constraint = self._grammars.json_schema(schema).start()
        return constraint

    def _search(self) -> Searches:
        """Made with the first search: a server without any has no tokenizer in its worker."""
        if self._searches is None:
            self._announce()
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.settings.model, local_files_only=True)
            verifiers = Verifiers(self.settings, tokenizer, self._announce)
            self._searches = Searches(self._engine, self.settings, tokenizer, verifiers)
        return self._searches


def _delta(event: Event) -> Delta:
    return Delta(event.handle, event.ids, event.logprobs, event.top, event.finish, event.cached, error=event.error)
