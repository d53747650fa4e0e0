"""The backend for GGUF files: llama.cpp's server in the worker process, one slot for each row.

A piece of work gets the free slot that holds most of its prompt, so a conversation goes on where its cache is; one that
shares with each slot less than half of either (how every chat begins) gets the one that was used longest ago instead of
overwriting another's conversation. What a slot holds is known here, not guessed by llama.cpp's similarity.

Threads, one for each row, read the streamed answers. llama.cpp makes the text itself: a stream has no ids for the first
tokens of a character of several tokens, so such tokens are counted and their text is there, but they have no
log-probability.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.llamacpp import common_prefix, sampling_body
from engine.llamaserver import LlamaError, LlamaServer, Stream
from engine.requests import Stats
from serve.backend import Delta, Work
from serve.settings import Settings

_FIELDS = ("content", "tokens", "stop_type", "stop", "timings", "completion_probabilities", "tokens_predicted")
_FINISH = {"eos": "eos", "limit": "length", "word": "stop"}


@dataclass(eq=False)
class _Running:
    """A piece of work in a slot, or waiting for one."""

    handle: int
    work: Work
    ids: np.ndarray
    drawn: list[int] = field(default_factory=list)
    stream: Stream | None = None
    cancelled: bool = False


class LlamaBackend:
    """`serve.backend.Backend`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._server = LlamaServer(
            settings.model,
            slots=settings.rows,
            context=settings.context,
            most_context=settings.context,
            threads=settings.threads,
            exact=False,
            gpu_layers=-1 if settings.device == "cuda" else 0,
            special=False,
        )
        self._vocab, _ = self._server.facts()
        self._held = [np.zeros(0, np.int64) for _ in range(settings.rows)]  # the ids in each slot's cache
        self._free = list(range(settings.rows))  # by when they were used, the longest ago first
        self._work: dict[int, _Running] = {}
        self._waiting: deque[_Running] = deque()
        self._handles = 0
        self._news: deque[Delta] = deque()
        self._lock = threading.Lock()
        self._wake, self._ring = os.pipe()
        self._figures = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)

    @property
    def context(self) -> int:
        return self._server.context

    @property
    def busy(self) -> bool:
        return False

    @property
    def files(self) -> list[int]:
        return [self._wake]

    def submit(self, work: Work) -> int:
        if work.search is not None:
            raise ValueError("search needs the torch engine: serve the model folder instead of the GGUF")
        if work.schema is not None:  # llama.cpp follows what it understands of a schema, and says nothing of the rest
            from engine.grammar import check_schema  # type: ignore[import-not-found]

            check_schema(work.schema)
        self._handles += 1
        running = _Running(self._handles, work, np.asarray(work.ids, np.int64))
        with self._lock:
            self._work[running.handle] = running
            self._waiting.append(running)
            self._assign()
        return running.handle

    def cancel(self, handle: int) -> None:
        with self._lock:
            running = self._work.pop(handle, None)
            if running is None:
                return
            running.cancelled = True
            if running in self._waiting:
                self._waiting.remove(running)
            stream = running.stream
        if stream is not None:
            stream.close()

    def turn(self) -> list[Delta]:
        if self._news or self._rung():
            self._answer_rings()
        news = []
        while self._news:
            news.append(self._news.popleft())
        for delta in news:
            if delta.last:
                self._work.pop(delta.handle, None)
        return news

    def stats(self) -> Stats:
        with self._lock:
            running = len(self._held) - len(self._free)
            waiting = len(self._waiting)
        return Stats(
            running=running,
            waiting=waiting,
            blocks=len(self._held),
            blocks_used=sum(bool(len(ids)) for ids in self._held),
            block_tokens=self.context,
            evicted_blocks=0,
            **self._figures,
        )

    def close(self) -> None:
        for handle in list(self._work):
            self.cancel(handle)
        self._server.close()

    def _assign(self) -> None:
        """Give free slots to those who wait, in their order. Call with the lock held."""
        while self._free and self._waiting:
            running = self._waiting.popleft()
            slot = self._best(running.ids)
            self._free.remove(slot)
            threading.Thread(target=self._run, args=(running, slot), daemon=True).start()

    def _best(self, ids: np.ndarray) -> int:
        """The free slot to run `ids` in."""
        shared = {slot: common_prefix(ids, self._held[slot]) for slot in self._free}
        own = [slot for slot, tokens in shared.items() if tokens and 2 * tokens >= min(len(ids), len(self._held[slot]))]
        return max(own, key=shared.__getitem__) if own else self._free[0]

    def _run(self, running: _Running, slot: int) -> None:
        """One piece of work, in a thread of its own."""
        running.stream = self._server.stream("/completion", self._body(running.work, slot))
        ended = False
        try:
            if not running.cancelled:
                for part in running.stream:
                    ended |= self._take(running, part)
            if not ended and not running.cancelled:
                self._tell(running, Delta(running.handle, error="llama.cpp ended the answer before its end"))
        except (LlamaError, OSError) as error:
            self._tell(running, Delta(running.handle, error=f"llama.cpp refused the request: {error}"))
        finally:
            self._give_back(running, slot, ended)

    def _take(self, running: _Running, part: dict[str, Any]) -> bool:
        """Pass on a part of the answer; whether it was the last."""
        running.drawn += part.get("tokens", [])
        entries = part.get("completion_probabilities", [])
        finish, cached, count = None, None, None
        if part.get("stop"):
            finish = _FINISH.get(part["stop_type"], "stop")
            ran, count = int(part["timings"]["prompt_n"]), int(part["tokens_predicted"])
            cached = max(0, len(running.ids) - ran)
            for name, value in (("prompt_tokens", ran), ("cached_tokens", cached), ("generated_tokens", count)):
                self._figures[name] += value
        self._tell(
            running,
            Delta(
                running.handle,
                ids=[int(entry["id"]) for entry in entries],
                logprobs=[float(entry["logprob"]) for entry in entries],
                top=[[(int(one["id"]), float(one["logprob"])) for one in entry["top_logprobs"]] for entry in entries],
                finish=finish,
                cached=cached,
                text=part.get("content", ""),
                count=count,
            ),
        )
        return finish is not None

    def _tell(self, running: _Running, delta: Delta) -> None:
        if not running.cancelled:
            self._news.append(delta)
            os.write(self._ring, b"!")

    def _give_back(self, running: _Running, slot: int, ended: bool) -> None:
        """The slot is free. What a request that was cut off left in it is not known."""
        known = ended and running.work.cache
        if not running.work.cache:
            self._server.request(f"/slots/{slot}?action=erase", {})
        with self._lock:
            held = [*running.work.ids, *running.drawn[:-1]] if known else []
            self._held[slot] = np.asarray(held, np.int64)
            self._free.append(slot)
            self._assign()
        os.write(self._ring, b"!")

    def _body(self, work: Work, slot: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": list(work.ids),
            "id_slot": slot,
            "stream": True,
            "n_predict": work.max_tokens,
            "cache_prompt": work.cache,
            "return_tokens": True,
            "response_fields": list(_FIELDS),
            **sampling_body(work.sampling, work.seed % (1 << 31), self._vocab, work.ids, work.max_tokens),
        }
        return body if work.schema is None else body | {"json_schema": work.schema}

    def _rung(self) -> bool:
        import select

        return bool(select.select([self._wake], [], [], 0)[0])

    def _answer_rings(self) -> None:
        while self._rung():
            os.read(self._wake, 4096)
