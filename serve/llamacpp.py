"""The backend for GGUF files: llama.cpp's server in the worker process, one slot for each row (`serve.slots`).

Threads, one for each slot in use, wait for llama.cpp. A plain request is streamed, and llama.cpp makes the text itself:
a stream has no ids for the first tokens of a character of several tokens, so such tokens are counted and their text is
there, but they have no log-probability. A search's sequences are wanted as ids that end where a step's do: each is one
answer, or a few (`engine.llamaslots`), and those that start together first share what they begin with.

Searches run in the worker's own thread, on the tokenizer of the GGUF; verifiers run in torch (`serve.verifiers`).
"""

from __future__ import annotations

import os
import select
import threading
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from engine.llamaserver import Interrupted, LlamaError, LlamaServer, Stream
from engine.llamaslots import Slots, row, sampling_body
from engine.requests import Event, Request, Stats
from engine.resubmit import Ends, Growing
from serve.backend import Delta, Work
from serve.search import Searches
from serve.settings import Settings
from serve.slots import Grant, Job, Shares
from serve.verifiers import Verifiers

READ = 128
"""Tokens of a verifier between two turns: so long the streams of others stand still."""
_FIELDS = ("content", "tokens", "stop_type", "stop", "timings", "completion_probabilities", "tokens_predicted")
_FINISH = {"eos": "eos", "limit": "length", "word": "stop"}


@dataclass(eq=False)
class _Chat(Job):
    """A plain request."""

    work: Work = field(kw_only=True)
    drawn: list[int] = field(default_factory=list)
    stream: Stream | None = None


@dataclass(eq=False)
class _Step(Job):
    """A sequence of a search."""

    step: bool = True
    request: Request = field(kw_only=True)
    growing: Growing = field(kw_only=True)
    ran: int | None = None
    """Prompt tokens run through the model for it alone, or once for all that begin like it."""


class LlamaBackend:
    """`serve.backend.Backend`."""

    def __init__(self, settings: Settings, announce: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._announce = announce
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
        self._slots = Slots(self._server, settings.rows)
        self._searches: Searches | None = None
        self._shares = Shares(self._slots.held, lambda: self._searches is not None and self._searches.running)
        self._jobs: dict[int, Job] = {}
        self._handles = 0
        self._news: deque[Delta | Event] = deque()
        self._lock = threading.Lock()
        self._wake, self._ring = os.pipe()
        self._figures = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)

    @property
    def context(self) -> int:
        return self._server.context

    @property
    def busy(self) -> bool:
        return self._searches is not None and self._searches.busy

    @property
    def files(self) -> list[int]:
        return [self._wake]

    def submit(self, work: Work) -> int:
        if work.search is not None:
            return self._search().submit(work)
        if work.schema is not None:  # llama.cpp follows what it understands of a schema, and says nothing of the rest
            from engine.grammar import check_schema  # type: ignore[import-not-found]

            check_schema(work.schema)
        handle = self._queue(lambda number: _Chat(number, row(work.ids if work.cache else ()), work=work))
        with self._lock:
            self._assign()
        return handle

    def submit_step(self, request: Request) -> int:
        """A sequence of a search. It starts at the end of the turn, with all that the search then asks for."""
        ends = Ends(self.context, self._slots.ends, request.stop)
        growing = Growing(request.prompt, len(request.prompt), request.seed, request.max_tokens, ends)
        ids = row(request.prompt if request.cache else ())
        return self._queue(lambda number: _Step(number, ids, request=request, growing=growing))

    def cancel(self, handle: int) -> None:
        if handle < 0:
            self._search().cancel(handle)
            return
        with self._lock:
            job = self._jobs.pop(handle, None)
            if job is None:
                return
            job.cancelled = True
            self._shares.drop(job)
            if isinstance(job, _Step) and job.slot is not None:
                self._slots.interrupt(job.slot)
            stream = job.stream if isinstance(job, _Chat) else None
        if stream is not None:
            stream.close()

    def turn(self) -> list[Delta]:
        self._answer_rings()
        deltas = []
        while self._news:
            news = self._news.popleft()
            if news.finish is not None or news.error is not None:
                self._jobs.pop(news.handle, None)
            if isinstance(news, Delta):
                deltas.append(news)
            elif self._searches is not None:
                self._searches.take(news)
        if self._searches is not None:
            deltas += self._searches.turn()
            with self._lock:
                self._assign()
        return deltas

    def stats(self) -> Stats:
        with self._lock:
            running = len(self._slots.held) - len(self._shares.free)
            waiting = sum(map(len, self._shares.waiting.values()))
        return Stats(
            running=running,
            waiting=waiting,
            blocks=len(self._slots.held),
            blocks_used=sum(bool(len(ids)) for ids in self._slots.held),
            block_tokens=self.context,
            evicted_blocks=0,
            **self._figures,
        )

    def close(self) -> None:
        for handle in list(self._jobs):
            self.cancel(handle)
        self._server.close()

    def _search(self) -> Searches:
        """Made with the first search: a server without any has neither transformers nor torch in its worker."""
        if self._searches is None:
            self._announce()
            from serve.gguf import fast_tokenizer

            tokenizer = fast_tokenizer(self.settings.model)
            settings = replace(self.settings, chunk=min(READ, self.settings.chunk))
            verifiers = Verifiers(settings, tokenizer, self._announce)
            self._searches = Searches(_Steps(self), settings, tokenizer, verifiers)
        return self._searches

    def _queue(self, make: Callable[[int], Job]) -> int:
        self._handles += 1
        job = make(self._handles)
        with self._lock:
            self._jobs[job.handle] = job
            self._shares.waiting[job.step].append(job)
        return job.handle

    def _assign(self) -> None:
        """Start what there are slots for. Call with the lock held."""
        for grant in self._shares.grant():
            for job in grant.jobs:
                assert job.slot is not None
                self._slots.clear(job.slot)
            first = grant.jobs[0]
            if isinstance(first, _Chat):
                _start(self._run_chat, first, first.slot)
            else:
                _start(self._run_steps, grant)

    def _run_chat(self, job: _Chat, slot: int) -> None:
        """One plain request, in a thread of its own."""
        job.stream = self._server.stream("/completion", self._body(job.work, slot))
        ended = False
        try:
            if not job.cancelled:
                for part in job.stream:
                    ended |= self._take(job, part)
            if not ended and not job.cancelled:
                self._tell(job, Delta(job.handle, error="llama.cpp ended the answer before its end"))
        except (LlamaError, OSError) as error:
            self._tell(job, Delta(job.handle, error=f"llama.cpp refused the request: {error}"))
        finally:
            # What a request that was cut off left in its slot is not known.
            self._slots.held[slot] = row([*job.work.ids, *job.drawn[:-1]] if ended else [])
            self._give_back(job, job.work.cache)

    def _take(self, job: _Chat, part: dict[str, Any]) -> bool:
        """Pass on a part of the answer; whether it was the last."""
        job.drawn += part.get("tokens", [])
        entries = part.get("completion_probabilities", [])
        finish, cached, count = None, None, None
        if part.get("stop"):
            finish = _FINISH.get(part["stop_type"], "stop")
            ran, count = int(part["timings"]["prompt_n"]), int(part["tokens_predicted"])
            cached = max(0, len(job.work.ids) - ran)
            self._count(prompt_tokens=ran, cached_tokens=cached, generated_tokens=count)
        self._tell(
            job,
            Delta(
                job.handle,
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

    def _run_steps(self, grant: Grant) -> None:
        """Sequences of searches that start together: in a thread of their own, then in one for each."""
        steps = [(job, job.slot) for job in grant.jobs if isinstance(job, _Step) and job.slot is not None]
        try:
            self._begin([(step, slot) for step, slot in steps if step.request.cache], grant)
        except (LlamaError, OSError) as error:
            for step, _ in steps:
                self._fail(step, error)
            return
        for step, slot in steps[1:]:
            _start(self._run_step, step, slot)
        self._run_step(*steps[0])

    def _begin(self, steps: list[tuple[_Step, int]], grant: Grant) -> None:
        """Bring to each slot what some slot holds of its prompt, and prefill once what several lack."""
        requests, places = [step.growing.request() for step, _ in steps], [slot for _, slot in steps]
        try:
            if steps:
                sources = places if grant.lent is None else [*places, grant.lent]
                self._slots.copy([step.ids for step, _ in steps], places, sources)
        except LlamaError as error:
            _warn(error)
        finally:
            if grant.lent is not None:
                with self._lock:
                    self._shares.return_lent(grant.lent)
                    self._assign()
        try:
            ran = self._slots.share(requests, places)
        except Interrupted:  # a search was cancelled; those of another one prefill their own
            return
        except LlamaError as error:
            _warn(error)
            return
        self._count(prompt_tokens=sum(ran.values()))
        shared = {tuple(requests[index].ids): tokens for index, tokens in ran.items()}
        for step, _ in steps:
            step.ran = shared.get(step.request.prompt)

    def _run_step(self, step: _Step, slot: int) -> None:
        """One sequence of a search up to where it ends."""
        request, growing = step.request, step.growing
        scored, cached = request.sampling.logprobs > 0, None
        try:
            while growing.finish is None:
                texts = self._slots.texts(request.stop)
                done = self._slots.complete(
                    slot, growing.request(), request.sampling, texts, scored=scored, cache=request.cache
                )
                if cached is None:
                    ran = done.usage.prompt
                    cached = max(0, len(request.prompt) - ran - (step.ran or 0))
                    self._count(prompt_tokens=ran, cached_tokens=cached)
                self._count(generated_tokens=len(done.ids))
                growing.take(done)
        except (LlamaError, OSError) as error:
            self._fail(step, error)
            return
        top = tuple(map(tuple, growing.top))
        event = Event(step.handle, tuple(growing.ids), tuple(growing.logprobs), top, growing.finish, cached)
        self._tell(step, event)
        self._give_back(step, request.cache)

    def _fail(self, step: _Step, error: Exception) -> None:
        self._tell(step, Event(step.handle, error=f"llama.cpp refused a step: {error}"))
        self._give_back(step, step.request.cache)

    def _tell(self, job: Job, news: Delta | Event) -> None:
        if not job.cancelled:
            self._news.append(news)
            os.write(self._ring, b"!")

    def _count(self, **tokens: int) -> None:
        with self._lock:
            for name, value in tokens.items():
                self._figures[name] += value

    def _give_back(self, job: Job, keep: bool) -> None:
        """The job's slot is free; `keep` what it holds."""
        assert job.slot is not None
        if not keep:
            self._slots.erase(job.slot)
        with self._lock:
            self._shares.give_back(job)
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
            **sampling_body(work.sampling, work.seed % (1 << 31), self._slots.vocab, work.ids, work.max_tokens),
        }
        return body if work.schema is None else body | {"json_schema": work.schema}

    def _answer_rings(self) -> None:
        while select.select([self._wake], [], [], 0)[0]:
            os.read(self._wake, 4096)


class _Steps:
    """The backend as searches see it (`serve.search.Submits`)."""

    def __init__(self, backend: LlamaBackend) -> None:
        self._backend = backend

    @property
    def context(self) -> int:
        return self._backend.context

    def submit(self, request: Request) -> int:
        return self._backend.submit_step(request)

    def cancel(self, handle: int) -> None:
        self._backend.cancel(handle)


def _warn(error: LlamaError) -> None:
    """That a cache could not be copied: there is no room in shared memory, for one. The search goes on without."""
    warnings.warn(f"{error}: sequences prefill what they could have shared", stacklevel=2)


def _start(run: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=run, args=arguments, daemon=True).start()
