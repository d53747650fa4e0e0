"""Search on an engine that others use too: the same trees, and all of them through one model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.requests import Request
from engine.serving import ServingEngine
from engine.session import OnOwner, SharedEngine
from engine.torch import TorchEngine
from search.answers import Answers
from search.budget import Budget
from search.methods import search
from search.options import Beam, Dvts, Options, Weighted
from search.setup import Setup
from tests.engine.models import make_model, prompts
from tests.engine.test_session import running
from tests.search.worlds import DELIMITER, END, Letters, WatchedVerifier

METHODS = (Beam(n=4, width=2), Dvts(n=4, width=2), Weighted(n=5))


def grow(engine: Any, verifier: Any, options: Options) -> Any:
    setup = Setup(Budget(max_tokens=24, max_step_tokens=7), Letters(), Answers())
    outcomes = search(engine, verifier, prompts(20, 13), [1, 2], options, setup)
    trees = [[(node.parent, node.ids, node.score) for node in outcome.nodes] for outcome in outcomes]
    return trees, [(one.text, one.score) for outcome in outcomes for one in outcome.candidates]


def judge() -> WatchedVerifier:
    def score(ids: Sequence[int]) -> float:
        return (sum(ids) * 7919 % 101) / 101

    return WatchedVerifier(score)


def test_searches_beside_requests_grow_the_trees_that_they_grow_alone() -> None:
    model = make_model()
    alone = TorchEngine(model, end_ids={END})
    expected = [grow(alone, judge(), options) for options in METHODS]
    assert all(any(DELIMITER in ids for tree in trees for _, ids, _ in tree) for trees, _ in expected)
    with running(ServingEngine(model, end_ids={END}, tokens=2048, cache_tokens=2048, block=4)) as owner:
        for seed in range(3):
            owner.mailbox.call(lambda seed=seed: owner.serving.submit(Request((5, 6, 7), max_tokens=60, seed=seed)))
        engines, verifier = [SharedEngine(owner.mailbox) for _ in METHODS], judge()
        with ThreadPoolExecutor(len(METHODS)) as pool:
            found = list(pool.map(grow, engines, [OnOwner(owner.mailbox, verifier)] * len(METHODS), METHODS))
        assert found == expected
        stats = owner.mailbox.call(lambda: owner.serving.stats)
    assert stats.cached_tokens > stats.prompt_tokens
    assert all(not handle.open for handle in verifier.handles)
