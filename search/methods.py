"""The table of methods, and one call that runs any of them on many problems."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.interface import Engine, Verifier
from search.adaptive import adaptive
from search.beam import beam, dvts
from search.confidence import deepconf
from search.options import (
    Adaptive,
    Beam,
    BestOfN,
    DeepConf,
    Dvts,
    EntropicParticles,
    Greedy,
    Majority,
    Options,
    Particles,
    Rebase,
    Weighted,
)
from search.particles import particles
from search.rebase import rebase
from search.sampling import greedy, sample_and_vote
from search.scheduler import Search, drive
from search.setup import Setup
from search.tree import Outcome
from search.trial import Trial, Watch


@dataclass(frozen=True)
class Entry:
    options: type[Options]
    run: Callable[[Trial, Any], Search[Outcome]]
    scored: bool
    """Needs a verifier; one that does not is run without, and pays for no scores."""


METHODS: dict[str, Entry] = {
    "greedy": Entry(Greedy, greedy, scored=False),
    "majority": Entry(Majority, sample_and_vote, scored=False),
    "best_of_n": Entry(BestOfN, sample_and_vote, scored=True),
    "weighted": Entry(Weighted, sample_and_vote, scored=True),
    "beam": Entry(Beam, beam, scored=True),
    "dvts": Entry(Dvts, dvts, scored=True),
    "rebase": Entry(Rebase, rebase, scored=True),
    "particles": Entry(Particles, particles, scored=True),
    "entropic_particles": Entry(EntropicParticles, particles, scored=True),
    "deepconf": Entry(DeepConf, deepconf, scored=False),
    "adaptive": Entry(Adaptive, adaptive, scored=False),
}


def seed_of(seed: int, problem: str) -> int:
    """The seed of one problem's search: a function of the run's seed and the problem's id alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{problem}".encode()).digest()[:7], "little")


def search(
    engine: Engine,
    verifier: Verifier | None,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    options: Options,
    setup: Setup,
    batch: int = 8,
    done: Callable[[int, Outcome], None] | None = None,
    watch: Watch | None = None,
) -> list[Outcome]:
    """Search a solution of each prompt, `batch` problems at a time; outcomes in the order of `prompts`.

    Problems are told apart by position, never by text. `done(index, outcome)` is called as each problem ends, `watch`
    as a tree grows. Raises ValueError for a missing verifier, an impossible budget, or a prompt without room.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: give each prompt one")
    entry = METHODS[options.name]
    check(entry, options, verifier is not None, setup)
    check_room(prompts, engine.context)
    judge = verifier if entry.scored else None
    outcomes: dict[int, Outcome] = {}

    def finished(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        if done:
            done(index, outcome)

    def one(index: int) -> Callable[[], Search[Outcome]]:
        return lambda: _solve(entry, Trial(engine, judge, setup, prompts[index], seeds[index], watch), options)

    drive(engine, judge, map(one, range(len(prompts))), batch, finished)
    return [outcomes[index] for index in range(len(prompts))]


def begin(
    engine: Engine,
    verifier: Verifier | None,
    prompt: Sequence[int],
    seed: int,
    options: Options,
    setup: Setup,
    watch: Watch | None = None,
) -> Search[Outcome]:
    """One search as a coroutine, for a caller that answers its requests among other work (`search.scheduler`).

    It calls only `fork`, `close` and `context` of `engine` itself. Closing it frees all its sequences. Raises
    ValueError like `search`, before the first request.
    """
    entry = METHODS[options.name]
    check(entry, options, verifier is not None, setup)
    check_room([prompt], engine.context)
    return _solve(entry, Trial(engine, verifier if entry.scored else None, setup, prompt, seed, watch), options)


def check(entry: Entry, options: Options, has_verifier: bool, setup: Setup) -> None:
    """Raise ValueError, before any work, for a method that cannot run."""
    check_verifier(entry, options.name, has_verifier)
    setup.budget.refuse_if_impossible(options.title, entry.scored)


def check_verifier(entry: Entry, method: str, has_verifier: bool) -> None:
    """Raise ValueError for a method that scores and has nothing to score with."""
    if entry.scored and not has_verifier:
        unscored = ", ".join(name for name, other in METHODS.items() if not other.scored)
        raise ValueError(
            f"{method} needs a process reward model, and there is none: give one (--prm, or a step's input `prm`), or "
            f"use one of {unscored}"
        )


def check_room(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raise ValueError for a prompt that leaves no position for a token."""
    for index, prompt in enumerate(prompts):
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, the model's context {context}: no position is left for a "
                "solution; shorten the prompt, or use a model with a longer context"
            )


def _solve(entry: Entry, trial: Trial, options: Options) -> Search[Outcome]:
    try:
        return (yield from entry.run(trial, options))
    finally:
        trial.close()
