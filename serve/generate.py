"""Runs a `Job` on the worker and makes text of what comes back: the same pieces for a stream and for one answer."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

from serve.backend import Delta
from serve.chat import Job
from serve.frames import Message
from serve.metrics import Metrics
from serve.supervisor import Supervisor
from serve.text import TextStream
from serve.tokenizer import TextTokenizer
from serve.tools import Call, CallReader

LEAST = -9999.0
"""Stands for the log-probability of what cannot be, as OpenAI's API has it: JSON knows no infinity."""
_FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Entry:
    """A token of an answer with its log-probability."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    start: int
    """Characters of the answer before it."""


@dataclass(frozen=True)
class Piece:
    """What is new of one choice."""

    index: int
    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish: str | None = None
    extra: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.entries or self.calls or self.finish or self.extra)


@dataclass
class Usage:
    """Tokens of a request so far."""

    prompt: int
    completion: int = 0
    cached: int = 0

    def to_message(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Choice:
    """The text of one answer."""

    def __init__(self, index: int, job: Job, tokenizer: TextTokenizer) -> None:
        self._index, self._job, self._tokenizer = index, job, tokenizer
        self._text = TextStream(job.stops)
        self._reader = CallReader(job.tools, job.forced, 1 if job.one_call else None) if job.tools else None
        self._entries: list[Entry] = []
        self.tokens = 0
        self.done = False

    def take(self, delta: Delta) -> Piece:
        """What `delta` adds. `done` tells that nothing that may follow is part of the answer."""
        text = self._read(delta)
        stopped = self._text.stopped
        calls: list[Call] = []
        finish = None
        if stopped or delta.finish is not None:
            self.done = True
            text += self._text.finish()
            finish = "stop" if self._text.stopped else _FINISH[str(delta.finish)]
        if self._reader is not None:
            text = self._reader.feed(text)
            if self.done:
                rest, calls = self._reader.finish()
                text += rest
                finish = "tool_calls" if calls else finish
        return Piece(self._index, text, self._release(), calls, finish, delta.extra)

    def _read(self, delta: Delta) -> str:
        if delta.text is not None:
            self._note(delta, len(delta.ids))
            return self._text.feed_text(delta.text)
        # The token that ended the answer is no part of it, whatever its text.
        last = len(delta.ids) - (delta.finish == "eos")
        text = ""
        for position, token in enumerate(delta.ids):
            if self._text.stopped:
                break
            self.tokens += 1
            if position >= last:
                break
            self._enter(delta, position)
            text += self._text.feed(self._tokenizer.shown(token))
        return text

    def _note(self, delta: Delta, ids: int) -> None:
        """Tokens of a backend that makes text itself: `count` has the last word."""
        for position in range(ids):
            self._enter(delta, position)
        self.tokens = delta.count if delta.count is not None else self.tokens + ids

    def _enter(self, delta: Delta, position: int) -> None:
        if self._job.logprobs is None or position >= len(delta.logprobs):
            return
        top = [(token, value) for token, value in delta.top[position]] if delta.top else []
        chosen = Entry(delta.ids[position], delta.logprobs[position], top[: self._job.logprobs], self._text.read)
        self._entries.append(chosen)

    def _release(self) -> list[Entry]:
        """Tokens whose text has been given out; at the end all but those of a stop string."""
        given = self._text.given
        if self.done and not self._text.stopped:
            given = self._text.read + 1
        ready = [entry for entry in self._entries if entry.start < given]
        self._entries = self._entries[len(ready) :]
        return ready


class Generation:
    """One request while it runs: iterate `pieces()` inside `async with`."""

    def __init__(self, job: Job, supervisor: Supervisor, tokenizer: TextTokenizer, metrics: Metrics) -> None:
        self.job, self.usage = job, Usage(sum(len(prompt) // 4 for prompt in job.prompts))
        self._supervisor, self._metrics = supervisor, metrics
        self.choices = [Choice(index, job, tokenizer) for index in range(len(job.prompts) * job.n)]
        self._requests = [
            (self._message(prompt, job.seed + number), prompt) for prompt in job.prompts for number in range(job.n)
        ]

    async def pieces(self) -> AsyncIterator[Piece]:
        """In the order in which they come. Raises Refused, WorkerDied, ValueError."""
        clock = _Clock(self._metrics)
        self._metrics.tokens.labels("prompt").inc(self.usage.prompt)
        async with await self._supervisor.open(self._requests) as flight:
            async for place, delta in flight.deltas():
                clock.tick(place)
                choice = self.choices[place]
                before = choice.tokens
                piece = choice.take(delta)
                self._count(place, choice.tokens - before, delta.cached)
                if choice.done and delta.finish is None:
                    flight.cancel(place)
                if piece:
                    yield piece

    def _count(self, place: int, new: int, cached: int | None) -> None:
        self.usage.completion += new
        self._metrics.tokens.labels("completion").inc(new)
        # Of several answers to one prompt the later ones share it with the first; that is no saving of the client's.
        if cached and place % self.job.n == 0:
            self.usage.cached += cached
            self._metrics.tokens.labels("cached").inc(cached)

    def _message(self, prompt: bytes, seed: int) -> Message:
        message: Message = {
            "sampling": asdict(self.job.sampling),
            "max_tokens": self.job.limit(prompt, self._supervisor.context),
            "seed": seed % (1 << 63),
            "cache": self.job.cache,
        }
        if self.job.schema is not None:
            message["schema"] = self.job.schema
        if self.job.search is not None:
            message["search"] = self.job.search
        return message


class _Clock:
    """Times between the tokens of each choice, for the histograms."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._begun = metrics, time.perf_counter()
        self._last: dict[int, float] = {}

    def tick(self, place: int) -> None:
        now = time.perf_counter()
        if place in self._last:
            self._metrics.between.observe(now - self._last[place])
        else:
            self._metrics.first.observe(now - self._begun)
        self._last[place] = now


def finite(logprob: float | None) -> float:
    """JSON's form of a log-probability."""
    return logprob if logprob is not None and math.isfinite(logprob) else LEAST
