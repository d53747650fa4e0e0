"""Beam search and DVTS over steps.

Both keep the best partial solutions of each round by the verifier's aggregated score; DVTS does so in independent
trees. A finished solution stays in the comparison: a tree ends when the best of all that it has seen are finished,
not when enough of them happen to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from search.options import Beam, Dvts
from search.scheduler import Search
from search.tree import Outcome
from search.trial import Path, Trial


@dataclass
class _Grove:
    """One tree's front: what is still to be grown, and all that ended."""

    live: list[Path]
    ended: list[Path] = field(default_factory=list)


def beam(trial: Trial, options: Beam) -> Search[Outcome]:
    """Beam search with a process reward model (Snell et al. 2024, arXiv:2408.03314, section 5.2)."""
    return _search(trial, options, trees=1, beams=options.size // options.width)


def dvts(trial: Trial, options: Dvts) -> Search[Outcome]:
    """Diverse verifier tree search (Beeching et al. 2024, "Scaling test-time compute with open models")."""
    return _search(trial, options, trees=options.size // options.width, beams=1)


def _search(trial: Trial, options: Beam | Dvts, trees: int, beams: int) -> Search[Outcome]:
    root = yield from trial.root()
    groves = [_Grove([root]) for _ in range(trees)]
    first = True
    while any(grove.live for grove in groves):
        # Before the first step there is one path, the prompt: it gets the children of all the beams.
        width = options.width * beams if first else options.width
        owners = _wanted(groves, width)
        children = trial.branch([path for path, _ in owners], options.lookahead)
        yield from trial.grow(children, options.lookahead)
        for tree, grove in enumerate(groves):
            own = [child for child, (_, owner) in zip(children, owners, strict=False) if owner == tree]
            _advance(trial, grove, own, beams)
        groves.sort(key=lambda grove: -trial.rank(grove.live[0]) if grove.live else 0.0)
        first = False
    return trial.conclude([path for grove in groves for path in grove.ended], options.vote)


def _wanted(groves: Sequence[_Grove], width: int) -> list[tuple[Path, int]]:
    """What to branch, with its tree: every beam's first child before any second one, best beams first."""
    most = max(len(grove.live) for grove in groves)
    return [
        (grove.live[place], tree)
        for _ in range(width)
        for place in range(most)
        for tree, grove in enumerate(groves)
        if place < len(grove.live)
    ]


def _advance(trial: Trial, grove: _Grove, children: list[Path], beams: int) -> None:
    """Keep the best `beams` of all that finished so far and the new live ones."""
    parents = grove.live
    if not children:  # the budget is out for this tree: what it had stays unfinished
        grove.ended += [_cut(trial, path) for path in parents if path.node >= 0]
    grove.ended += [child for child in children if child.status != "live"]
    finished = [path for path in grove.ended if path.status == "finished"]
    live = [child for child in children if child.status == "live"]
    best = sorted(finished + live, key=trial.rank, reverse=True)[:beams]
    grove.live = [path for path in best if path.status == "live"]
    trial.drop([path for path in [*parents, *children] if path not in grove.live])


def _cut(trial: Trial, path: Path) -> Path:
    trial.cut(path)
    return path
