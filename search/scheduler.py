"""Many searches at once: each problem's search is a coroutine, and one scheduler merges what they ask for.

A method is written for one problem, as a generator that yields a request and is sent the reply. The scheduler lets
`batch` of them advance together: all of a round's requests of one kind become one call of the engine or the verifier.
What a search is answered does not depend on its neighbours, because the engine's randomness belongs to the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from engine.interface import Engine, Sampling, Verifier

T = TypeVar("T")


@dataclass(frozen=True)
class Open:
    """Start one sequence on a prompt, in the engine or in the verifier. Reply: its handle."""

    prompt: Sequence[int]
    verifier: bool = False


@dataclass(frozen=True)
class Step:
    """Extend sequences. Reply: `list[StepOut]`."""

    seqs: list[Any]
    limits: list[int]
    sampling: Sampling
    stop: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Extend:
    """Score the next steps of each sequence. Reply: `list[list[float]]`."""

    seqs: list[Any]
    paths: list[list[list[int]]]


Request: TypeAlias = Open | Step | Extend
Search: TypeAlias = Generator[Request, Any, T]
"""A search, or a part of one, that ends with a `T`."""


def drive(
    engine: Engine,
    verifier: Verifier | None,
    searches: Iterable[Callable[[], Search[T]]],
    batch: int,
    done: Callable[[int, T], None],
) -> None:
    """Run `searches`, at most `batch` at a time; `done(index, result)` as each ends.

    Where one fails, all are closed (and free their sequences) before the error goes on.
    """
    waiting = enumerate(searches)
    live: dict[int, Search[T]] = {}
    asked: dict[int, Request] = {}
    try:
        while True:
            replies: dict[int, Any] = _serve(engine, verifier, _due(asked))
            asked = {index: request for index, request in asked.items() if index not in replies}
            while len(live) < batch and (entry := next(waiting, None)) is not None:
                live[entry[0]] = entry[1]()
                replies[entry[0]] = None
            if not live:
                return
            for index, reply in replies.items():
                try:
                    asked[index] = live[index].send(reply)
                except StopIteration as end:
                    del live[index]
                    done(index, end.value)
    finally:
        for search in live.values():
            search.close()


def _due(asked: dict[int, Request]) -> dict[int, Request]:
    """What to serve next: generation waits until nothing else is asked, so that all searches meet in one call of it.

    Served at once, searches would drift apart: with eight problems of eight samples each, sampling took twice as long.
    """
    cheap: dict[int, Request] = {index: request for index, request in asked.items() if not isinstance(request, Step)}
    return cheap or asked


def _serve(engine: Engine, verifier: Verifier | None, requests: dict[int, Request]) -> dict[int, Any]:
    """Replies to one round of requests, by the index of the search that asked."""
    groups: dict[Any, list[int]] = {}
    for index, request in requests.items():
        groups.setdefault(_kind(request), []).append(index)
    replies: dict[int, Any] = {}
    for indices in groups.values():
        replies |= _call(engine, verifier, indices, [requests[index] for index in indices])
    return replies


def _kind(request: Request) -> Any:
    """What may share a call."""
    if isinstance(request, Open):
        return (Open, request.verifier)
    return (Step, request.sampling, request.stop) if isinstance(request, Step) else Extend


def _call(engine: Engine, verifier: Verifier | None, indices: list[int], group: list[Any]) -> dict[int, Any]:
    first = group[0]
    if isinstance(first, Open):
        prompts = [request.prompt for request in group]
        if first.verifier:
            assert verifier is not None
            return dict(zip(indices, verifier.open(prompts), strict=True))
        # Nothing is drawn from these: their forks are, each with a seed of its own.
        return dict(zip(indices, engine.open(prompts, [0] * len(prompts)), strict=True))
    seqs = [seq for request in group for seq in request.seqs]
    flat: Sequence[Any]
    if isinstance(first, Step):
        limits = [limit for request in group for limit in request.limits]
        flat = engine.step(seqs, first.sampling, limits, first.stop)
    else:
        assert verifier is not None
        flat = verifier.read(seqs, [path for request in group for path in request.paths])
    rest = iter(flat)
    return {index: [next(rest) for _ in request.seqs] for index, request in zip(indices, group, strict=True)}
