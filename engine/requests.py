"""What a server asks of an engine that runs many requests together, and what it gets: `engine.serving.ServingEngine`.

    handle = engine.submit(Request(ids, Sampling(temperature=0.7), max_tokens=128, seed=1))
    while not engine.idle:
        for event in engine.turn():       # at most one chunk of a prompt and one decode step of all rows
            ...                           # event.handle says whose tokens these are

Single-threaded and without I/O: a worker process calls `turn` in a loop and looks for new requests between the turns,
so a long prompt holds up others by one chunk at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.interface import Finish, Sampling


class Constraint(Protocol):
    """Which tokens may come next: a JSON schema or a grammar, as masks (`engine.grammar`)."""

    def mask(self) -> Sequence[int] | None:
        """Words of 32 bits, bit `i % 32` of word `i // 32` set where token `i` is allowed; None where all are."""

    def accept(self, token: int) -> bool:
        """Go on by `token`; whether the text may not go on (the engine then finishes with "stop")."""


@dataclass(frozen=True)
class Request:
    """One generation."""

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    seed: int = 0
    """The token at position p is a function of logits, seed and p (`engine.interface`), whoever shares the batch."""
    stop: tuple[tuple[int, ...], ...] = ()
    """Token sequences. Stop *strings* belong to whoever makes text of the tokens, and cancels."""
    constraint: Constraint | None = None
    cache: bool = True
    """False: neither reads the prefix cache nor leaves anything in it, for text whose presence must not be told by
    time."""


@dataclass(frozen=True)
class Event:
    """New tokens of one request, in order. The last event of a request has `finish` or, if it failed, `error`."""

    handle: int
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """At each position the `Sampling.logprobs` most probable `(id, logprob)`, best first."""
    finish: Finish | None = None
    cached: int | None = None
    """Prompt tokens that came from the prefix cache; with the first event of a request."""
    error: str | None = None
    """Why this request alone failed (nan logits, a constraint that raised or allows nothing); the others run on."""


@dataclass(frozen=True)
class Stats:
    """Of an engine, now and since it was made."""

    running: int
    waiting: int
    blocks: int
    """Of the prefix cache's pool."""
    blocks_used: int
    block_tokens: int
    prompt_tokens: int
    """Run through the model."""
    cached_tokens: int
    """Taken from the prefix cache instead."""
    generated_tokens: int
    evicted_blocks: int
