"""Greedy decoding, and votes over independent samples.

`greedy` scores nothing. `sample_and_vote` is majority, Best-of-N and weighted Best-of-N; sample i is the same whatever
`n` is, so the result at a smaller n is the prefix of one at a larger (`prefix`), token for token.
"""

from __future__ import annotations

from dataclasses import replace

from engine.interface import Sampling
from search.options import BestOfN, Greedy, Majority, Weighted
from search.scheduler import Search
from search.setup import Setup
from search.tree import Outcome
from search.trial import Path, Trial
from search.votes import Vote, choose

VOTES: dict[str, Vote] = {"majority": "majority", "best_of_n": "best", "weighted": "weighted"}


def greedy(trial: Trial, options: Greedy) -> Search[Outcome]:
    root = yield from trial.root()
    paths = trial.start(root, 1)
    yield from trial.run_out(paths, Sampling(temperature=0))
    return trial.conclude(paths, "majority")


def sample_and_vote(trial: Trial, options: Majority | BestOfN | Weighted) -> Search[Outcome]:
    """Self-consistency (Wang et al. 2022, arXiv:2203.11171), Best-of-N (Cobbe et al. 2021, arXiv:2110.14168) and its
    weighted form (Li et al. 2023, arXiv:2206.02336)."""
    root = yield from trial.root()
    paths: list[Path] = []
    while wave := trial.start(root, options.size - len(paths)):
        yield from trial.run_out(wave)
        trial.drop(wave)
        paths += wave
    return trial.conclude(paths, VOTES[options.name])


def prefix(pool: Outcome, n: int, method: str, setup: Setup, room: int) -> Outcome:
    """What `method` would have found and spent with `n` samples, out of a larger sampling without a limit.

    `room`: tokens that one solution could have taken. A sample is started only if the budget can pay it at full length,
    as in `sample_and_vote`; a majority does not pay for scores.
    """
    scored = method != "majority"
    total = setup.budget.tokens
    kept, generated, read = [], 0, 0
    for candidate in pool.candidates[:n]:
        if total is not None and total - generated - read < room * (2 if scored else 1):
            break
        kept.append(candidate if scored else replace(candidate, step_scores=[], score=0.0, scored=0))
        generated += candidate.generated
        read += candidate.scored if scored else 0
    chosen = choose(kept, VOTES[method], setup.reader.same)
    spent = replace(pool.spent, generated=generated, scored=read, prompt_scored=pool.spent.prompt_scored * scored)
    return Outcome(None if chosen is None else kept[chosen].answer, chosen, kept, pool.nodes, spent)
