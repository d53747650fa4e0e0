"""Test-time search in a server: searches advance between other requests' tokens, on the same engine and prefix cache.

A search is a coroutine (`search.scheduler`) that asks for three things. New tokens become requests of the serving
engine like everybody's: a step is submitted as the ids so far, of which the prefix cache has all but the newest, and
its randomness belongs to its seed and position, so it does not matter that it was interrupted. Scores run in the
verifier's own cache, at most `chunk` tokens of them between two turns of the engine. Forks are lists of ids and cost
nothing here. So a search needs no thread, and one that nobody waits for any more is closed, with all that it holds.

Answers are compared as numbers, or else as texts: comparing LaTeX by value takes a process of its own and may take
seconds, in which nobody else would get a token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from acorn.answers import Answers
from engine.interface import Finish, StepOut
from engine.requests import Event, Request
from search.budget import Budget, Spent
from search.methods import METHODS, begin
from search.scheduler import Extend, Open, Search, Step
from search.setup import Setup
from search.steps import StepSplitter
from search.tree import Candidate, Node, Outcome
from serve.backend import Delta, Work
from serve.search_field import Plan
from serve.settings import Settings
from serve.verifiers import Verifiers, delimiter_of

if TYPE_CHECKING:
    from engine.prm import TorchVerifier, VerifierSeq

AT_ONCE = 2
"""Searches that advance together; others wait for them."""


class Submits(Protocol):
    """What generates: `engine.serving.ServingEngine`, or the slots of llama.cpp (`serve.llamacpp`)."""

    @property
    def context(self) -> int: ...
    def submit(self, request: Request) -> int: ...
    def cancel(self, handle: int) -> None: ...


class PlainAnswers(Answers):
    """Compares what is no number as text."""

    def _ask(self, first: str, second: str) -> bool:
        return " ".join(first.split()).casefold() == " ".join(second.split()).casefold()


@dataclass(eq=False)
class Seq:
    """A sequence: nothing but ids and a seed. Its cache is the prefix cache."""

    ids: list[int]
    seed: int


class Sequences:
    """What a search calls of an engine itself; its requests come as replies."""

    def __init__(self, context: int) -> None:
        self.context = context

    def fork(self, seq: Seq, seeds: Sequence[int]) -> list[Seq]:
        return [Seq(list(seq.ids), seed) for seed in seeds]

    def close(self, seqs: Sequence[Seq]) -> None:
        """Nothing is held."""


@dataclass(eq=False)
class _Running:
    """A search at work."""

    handle: int
    work: Work
    plan: Plan
    verifier: TorchVerifier | None
    splitter: StepSplitter
    coroutine: Search[Outcome]
    drawing: dict[int, int] = field(default_factory=dict)
    """Handle of the engine -> index in `seqs`, while it draws."""
    seqs: list[Seq] = field(default_factory=list)
    drawn: list[StepOut | None] = field(default_factory=list)
    scoring: Extend | Open | None = None
    """What the verifier has to do next,"""
    scores: list[list[float]] = field(default_factory=list)
    """what of it is done,"""
    opened: VerifierSeq | None = None
    """and the sequence whose prompt it now reads."""
    cached: int | None = None
    """Tokens of the prompt that its first request found in the prefix cache."""


class Searches:
    """The searches of one worker. Its owner passes on the engine's events (`take`) and calls `turn` between them."""

    def __init__(self, engine: Submits, settings: Settings, tokenizer: Any, verifiers: Verifiers) -> None:
        self._engine, self._settings, self._tokenizer = engine, settings, tokenizer
        self._verifiers = verifiers
        self._splitters: dict[str, StepSplitter] = {}
        self._waiting: deque[tuple[int, Work, Plan]] = deque()
        self._running: dict[int, _Running] = {}
        self._owners: dict[int, _Running] = {}
        self._news: list[Delta] = []
        self._handles = 0

    @property
    def running(self) -> bool:
        """Whether there is a search, at work or waiting for others."""
        return bool(self._running or self._waiting)

    @property
    def busy(self) -> bool:
        """Whether `turn` has something to do, whatever the engine has."""
        reads = any(run.scoring is not None for run in self._running.values())
        return reads or bool(self._news) or bool(self._waiting and len(self._running) < AT_ONCE)

    def submit(self, work: Work) -> int:
        """Take a search in; its handle, which is negative. Raises ValueError for one that cannot run."""
        plan = Plan.model_validate(work.search)
        if METHODS[plan.method].scored:
            folder = self._verifiers.find(plan.verifier)
            delimiter_of(folder, plan.step_delimiter)
        self._handles -= 1
        self._waiting.append((self._handles, work, plan))
        return self._handles

    def cancel(self, handle: int) -> None:
        """Free all that a search holds; no delta of it follows. One that has ended is let be."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != handle)
        self._news = [delta for delta in self._news if delta.handle != handle]
        if (run := self._running.pop(handle, None)) is not None:
            self._stop(run)

    def take(self, event: Event) -> bool:
        """Note an event of the engine; whether it was one of a search."""
        run = self._owners.get(event.handle)
        if run is None:
            return False
        index = run.drawing[event.handle]
        if run.cached is None:
            run.cached = min(event.cached or 0, len(run.work.ids))
        if event.error is not None:
            self._fail(run, event.error)
            return True
        before = run.drawn[index] or StepOut([], [], "length", [])
        run.seqs[index].ids.extend(event.ids)
        run.drawn[index] = StepOut(
            [*before.ids, *event.ids],
            [*before.logprobs, *event.logprobs],
            event.finish or before.finish,
            [*before.top, *(list(row) for row in event.top)],
        )
        if event.finish is not None:
            del run.drawing[event.handle], self._owners[event.handle]
            if not run.drawing:
                self._advance(run, run.drawn)
        return True

    def turn(self) -> list[Delta]:
        """Begin what waits, let the verifier read a chunk, and tell what is new."""
        while self._waiting and len(self._running) < AT_ONCE:
            self._begin(*self._waiting.popleft())
        reading = next((run for run in self._running.values() if run.scoring is not None), None)
        if reading is not None:
            # To the end of the line, so that searches take turns.
            self._running[reading.handle] = self._running.pop(reading.handle)
            self._read(reading)
        news, self._news = self._news, []
        return news

    def _begin(self, handle: int, work: Work, plan: Plan) -> None:
        try:
            run = self._make(handle, work, plan)
        except ValueError as error:
            self._news.append(Delta(handle, error=str(error)))
            return
        self._running[handle] = run
        if plan.progress:  # so that a stream begins when its search does
            self._news.append(Delta(handle, extra={"steps": [], "spent": _spent(Spent())}))
        self._advance(run, None)

    def _make(self, handle: int, work: Work, plan: Plan) -> _Running:
        options = plan.options_of()
        folder = self._verifiers.find(plan.verifier) if METHODS[plan.method].scored else None
        delimiter = delimiter_of(folder, plan.step_delimiter)
        if delimiter not in self._splitters:
            self._splitters = dict(islice(self._splitters.items(), 3)) | {
                delimiter: StepSplitter(self._tokenizer, delimiter)
            }
        splitter = self._splitters[delimiter]
        verifier = None if folder is None else self._verifiers.load(folder)
        limits = Budget(min(plan.max_tokens, work.max_tokens), plan.max_step_tokens, plan.budget)
        _check_room(verifier, len(work.ids) + limits.max_tokens)
        drawn = replace(work.sampling, logprobs=0)
        setup = Setup(limits, splitter, PlainAnswers(), drawn, plan.aggregation)
        tree = _Tree(splitter)

        def watch(nodes: list[Node], spent: Spent) -> None:
            if plan.progress:
                self._news.append(Delta(handle, extra=tree.news(nodes, spent)))

        sequences: Any = Sequences(self._engine.context)
        coroutine = begin(sequences, verifier, work.ids, work.seed, options, setup, watch)
        return _Running(handle, work, plan, verifier, splitter, coroutine)

    def _advance(self, run: _Running, reply: Any) -> None:
        """Let the search go on with `reply`, up to what it next has to wait for."""
        while True:
            try:
                asked = run.coroutine.send(reply)
                if not isinstance(asked, Open) and not asked.seqs:
                    reply = []
                elif isinstance(asked, Step):
                    self._draw(run, asked)
                    return
                elif isinstance(asked, Extend) or asked.verifier:
                    run.scoring, run.scores = asked, []
                    return
                else:
                    reply = Seq(list(asked.prompt), 0)
            except StopIteration as end:
                del self._running[run.handle]
                self._news += _told(run, end.value)
                return
            except ValueError as error:  # of this search alone: a step that the verifier cannot read, for one
                self._fail(run, str(error))
                return

    def _draw(self, run: _Running, asked: Step) -> None:
        run.seqs, run.drawn = asked.seqs, [None] * len(asked.seqs)
        for index, (seq, limit) in enumerate(zip(asked.seqs, asked.limits, strict=True)):
            request = Request(
                prompt=tuple(seq.ids),
                sampling=asked.sampling,
                max_tokens=limit,
                seed=seq.seed,
                stop=asked.stop,
                cache=run.work.cache,
            )
            handle = self._engine.submit(request)
            run.drawing[handle] = index
            self._owners[handle] = run

    def _read(self, run: _Running) -> None:
        """Let the verifier read about a chunk of what is to be scored."""
        asked, verifier = run.scoring, run.verifier
        assert asked is not None and verifier is not None
        run.scoring = None
        reply: Any = run.scores
        try:
            if isinstance(asked, Open):
                run.opened = run.opened or verifier.begin(asked.prompt)
                if not verifier.go_on(run.opened, self._settings.chunk):
                    run.scoring = asked
                    return
                reply, run.opened = run.opened, None
            else:
                done = len(run.scores)
                end = done + _chunk(asked.paths[done:], self._settings.chunk)
                run.scores += verifier.read(asked.seqs[done:end], asked.paths[done:end])
                if end < len(asked.seqs):
                    run.scoring = asked
                    return
        except ValueError as error:  # a text over the verifier's context, for one
            self._fail(run, str(error))
            return
        self._advance(run, reply)

    def _fail(self, run: _Running, reason: str) -> None:
        del self._running[run.handle]
        self._stop(run)
        self._news.append(Delta(run.handle, error=f"search: {reason}"))

    def _stop(self, run: _Running) -> None:
        for handle in run.drawing:
            self._engine.cancel(handle)
            del self._owners[handle]
        run.drawing, run.scoring, run.opened = {}, None, None
        run.coroutine.close()


class _Tree:
    """What of a growing tree a client has not been told."""

    def __init__(self, splitter: StepSplitter) -> None:
        self._splitter = splitter
        self._told: list[tuple[float | None, str]] = []

    def news(self, nodes: Sequence[Node], spent: Spent) -> dict[str, Any]:
        """Steps that are new or have changed, and the tokens spent."""
        changed = []
        for index, node in enumerate(nodes):
            state = (node.score, node.status)
            if index < len(self._told) and self._told[index] == state:
                continue
            one: dict[str, Any] = {"id": index, "score": node.score, "status": node.status}
            if index >= len(self._told):
                one |= {"parent": node.parent, "text": self._splitter.text(node.ids)}
            self._told[index : index + 1] = [state]
            changed.append(one)
        return {"steps": changed, "spent": _spent(spent)}


def _told(run: _Running, outcome: Outcome) -> list[Delta]:
    """The winner, step by step, and at the end what the search was."""
    best = outcome.chosen if outcome.chosen is not None else _best(outcome.candidates)
    path = [] if best is None else _path(outcome, outcome.candidates[best].node)
    done, deltas = "", []
    ids: list[int] = []
    for node in path:
        ids += outcome.nodes[node].ids
        text = run.splitter.text(ids)
        deltas.append(Delta(run.handle, text=text[len(done) :]))
        done = text
    finish: Finish = "stop" if best is not None and outcome.candidates[best].finished else "length"
    summary = {
        "method": run.plan.method,
        "answer": outcome.answer,
        "score": None if best is None else outcome.candidates[best].score,
        "path": path,
        "solutions": sum(candidate.finished for candidate in outcome.candidates),
        "spent": _spent(outcome.spent),
    }
    total = outcome.spent.total
    return [*deltas, Delta(run.handle, text="", finish=finish, cached=run.cached, count=total, extra=summary)]


def _best(candidates: Sequence[Candidate]) -> int | None:
    """Where no answer can be read: the best score, of those that came to an end if any did."""
    order = [(one.finished, one.score if one.weight is None else one.weight, -at) for at, one in enumerate(candidates)]
    return -max(order)[2] if order else None


def _path(outcome: Outcome, node: int) -> list[int]:
    """Steps from the first to `node`."""
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = outcome.nodes[node].parent
    return path[::-1]


def _spent(spent: Spent) -> Mapping[str, int]:
    return {"generated": spent.generated, "scored": spent.scored}


def _chunk(paths: Sequence[Sequence[Sequence[int]]], tokens: int) -> int:
    """How many of `paths`, at least one, have about `tokens` together."""
    total = 0
    for count, path in enumerate(paths):
        total += sum(map(len, path))
        if total > tokens and count:
            return count
    return len(paths)


def _check_room(verifier: Any, longest: int) -> None:
    context = getattr(verifier, "context", None)
    if context is not None and longest > context:
        raise ValueError(
            f"prompt and max_tokens are {longest} tokens, the verifier's context {context}: lower max_tokens, or name"
            " a verifier with a longer one"
        )
