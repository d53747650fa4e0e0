"""Many requests on one model: each gets what it would get alone, and memory bounds everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.interface import Sampling
from engine.requests import Event, Request
from engine.serving import ServingEngine
from engine.torch import TorchEngine
from tests.engine.models import NAMES, VOCAB, make_model, prompts

GREEDY, WARM = Sampling(temperature=0), Sampling()
WAYS = (GREEDY, WARM, Sampling(temperature=0.7, top_k=9), Sampling(top_p=0.8, logprobs=3), Sampling(min_p=0.1))


@dataclass
class Answer:
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    cached: int | None = None
    finish: str | None = None
    error: str | None = None


def collect(answers: dict[int, Answer], events: Iterable[Event]) -> None:
    for event in events:
        answer = answers.setdefault(event.handle, Answer())
        assert answer.finish is None and answer.error is None, "an event after the last one"
        first = not answer.ids
        answer.ids += event.ids
        answer.logprobs += event.logprobs
        answer.top += event.top
        answer.finish, answer.error = event.finish, event.error
        assert (event.cached is not None) == first
        answer.cached = event.cached if first else answer.cached


def run(engine: ServingEngine, requests: Sequence[Request]) -> list[Answer]:
    """All at once, to their ends."""
    handles = [engine.submit(request) for request in requests]
    answers: dict[int, Answer] = {}
    while not engine.idle:
        collect(answers, engine.turn())
    return [answers[handle] for handle in handles]


def alone(engine: TorchEngine, request: Request) -> Answer:
    [seq] = engine.open([request.prompt], [request.seed])
    [out] = engine.step([seq], request.sampling, request.max_tokens, request.stop)
    return Answer(out.ids, out.logprobs, [tuple(pairs) for pairs in out.top], None, out.finish)


def assert_same(found: Answer, expected: Answer) -> None:
    assert (found.ids, found.finish, found.error) == (expected.ids, expected.finish, None)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert [[token for token, _ in pairs] for pairs in found.top] == [[t for t, _ in pairs] for pairs in expected.top]


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest) -> TorchEngine:
    return TorchEngine(make_model(request.param), end_ids={1})


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_a_request_gets_what_it_would_get_alone_whoever_comes_and_goes(reference: TorchEngine, data: Any) -> None:
    """Requests of all kinds arrive and are cancelled at any time, with little memory."""
    tokens = data.draw(st.sampled_from([128, 256, 2048]))
    engine = ServingEngine(
        reference.model,
        end_ids={1},
        tokens=tokens,
        rows=data.draw(st.integers(1, 6)),
        chunk=data.draw(st.integers(1, 40)),
    )
    starts = [tuple(prompt) for prompt in prompts(70, 33, 12, 5)]
    request = st.builds(
        lambda start, length, extra, **kwargs: Request((*start[:length], *extra), **kwargs),
        st.sampled_from(starts), st.integers(1, 70), st.lists(st.integers(2, VOCAB - 1), max_size=6).map(tuple),
        sampling=st.sampled_from(WAYS), max_tokens=st.integers(1, 30), seed=st.integers(0, 3),
        stop=st.sampled_from([(), ((7,), (9, 9))]), cache=st.sampled_from([True, True, False]),
    )  # fmt: skip
    asked: dict[int, Request] = {}
    answers: dict[int, Answer] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        new = data.draw(request)
        if len(new.prompt) < engine.context:
            asked[engine.submit(new)] = new
        for _ in range(data.draw(st.integers(0, 4))):
            collect(answers, engine.turn())
        if asked and data.draw(st.integers(0, 5)) == 0:
            handle = data.draw(st.sampled_from(sorted(asked)))
            engine.cancel(handle)
            del asked[handle]
            answers.pop(handle, None)
    for _ in range(3000):
        if engine.idle:
            break
        collect(answers, engine.turn())
    assert answers.keys() == asked.keys()
    small = TorchEngine(reference.model, end_ids={1}, context=engine.context)
    for handle, answer in answers.items():
        assert_same(answer, alone(small, asked[handle]))
    assert_nothing_is_held(engine)


def assert_nothing_is_held(engine: ServingEngine) -> None:
    assert engine.idle and engine.turn() == []
    assert engine._store.used == 0
    cache = engine._cache
    held = list(cache.index._order)
    assert not any(node.pins for node in held)
    assert {block for node in held for block in node.blocks.tolist()} == set(cache.pool.holders.nonzero()[0].tolist())
    assert engine.stats.blocks_used == cache.pool.used == (cache.pool.holders > 0).sum()
