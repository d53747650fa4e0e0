"""Many requests on one model: each gets what it would get alone, and memory bounds everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.interface import Sampling
from engine.requests import Event, Request
from engine.serving import ServingEngine
from engine.torch import TorchEngine
from tests.engine.models import CONTEXT, NAMES, VOCAB, Counter, make_model, prompts

GREEDY, WARM = Sampling(temperature=0), Sampling()
WAYS = (
    GREEDY, WARM, Sampling(temperature=0.7, top_k=9), Sampling(top_p=0.8, logprobs=3), Sampling(min_p=0.1),
    Sampling(temperature=0, frequency_penalty=1.0), Sampling(presence_penalty=1.5, logit_bias=((4, 3.0),), logprobs=2),
)  # fmt: skip


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


def ask(prompt: Sequence[int], tokens: int = 6, **options: Any) -> Request:
    return Request(tuple(prompt), options.pop("sampling", GREEDY), tokens, **options)


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model()


def test_one_prefix_runs_once_however_many_ask_for_it_together(llama: Any) -> None:
    model = make_model()
    counter = Counter(model)
    engine = ServingEngine(model, end_ids=(), tokens=4096, cache_tokens=1024, chunk=16, block=4)
    counter.tokens = 0  # the probe's
    [prompt] = prompts(60)
    answers = run(engine, [ask(prompt, 1, seed=seed, sampling=WARM) for seed in range(5)])
    assert counter.tokens == 60 + 4  # the last token of the prompt is run for each
    assert [answer.cached for answer in answers] == [0, 59, 59, 59, 59]
    assert engine.stats.prompt_tokens == 64 and engine.stats.cached_tokens == 4 * 59
    # A longer prompt that begins alike goes on as soon as the common part is there, before the other prompt is done.
    first, second = engine.submit(ask([9, *prompt, 2, 3])), engine.submit(ask([9, *prompt[:40], 5, 5, 5]))
    counter.tokens, order, cached = 0, [], {}
    while not engine.idle:
        for event in engine.turn():
            order += [event.handle]
            cached |= {event.handle: event.cached} if event.cached is not None else {}
    assert cached == {first: 0, second: 41} and order[0] == second
    assert counter.tokens == 63 + 3 + 2 * 5
    # Also where a chunk left but one token of the prompt.
    engine.submit(ask([8, *prompt[:16]], 1))
    engine.turn()
    [answer] = run(engine, [ask([8, *prompt[:16], 5, 5], 1)])
    assert answer.cached == 17


def test_the_second_turn_runs_only_what_is_new(llama: Any) -> None:
    engine = ServingEngine(llama, end_ids=(), tokens=4096, cache_tokens=1024)
    reference = TorchEngine(llama, end_ids=())
    [prompt] = prompts(40)
    [first] = run(engine, [ask(prompt, 12)])
    ran = engine.stats.prompt_tokens
    second = ask([*prompt, *first.ids, 5, 6], 8)
    [again] = run(engine, [second])
    # The last token of the reply never ran through the model.
    assert again.cached == 40 + 11 and engine.stats.prompt_tokens - ran == 3
    assert again.ids == alone(reference, second).ids
    assert engine.stats.blocks_used * engine.stats.block_tokens >= 40 + 12 + 2 + 8 - 1


def test_a_request_without_the_cache_neither_reads_it_nor_leaves_anything(llama: Any) -> None:
    engine = ServingEngine(llama, end_ids=(), tokens=4096, cache_tokens=1024)
    [prompt] = prompts(40)
    assert run(engine, [ask(prompt, cache=False), ask(prompt, cache=False)])[1].cached == 0
    assert engine.stats.blocks_used == 0
    run(engine, [ask(prompt)])
    used = engine.stats.blocks_used
    [answer] = run(engine, [ask([*prompt, 3], cache=False)])
    assert answer.cached == 0 and engine.stats.blocks_used == used


def test_what_was_unused_longest_leaves_a_full_cache(llama: Any) -> None:
    engine = ServingEngine(llama, end_ids=(), tokens=4096, cache_tokens=96)
    first, second, third = prompts(32, 33, 34)
    for prompt in (first, second, first, third):
        run(engine, [ask(prompt, 1)])
    stats = engine.stats
    assert (stats.blocks, stats.evicted_blocks) == (6, 3) and stats.blocks_used == 5
    assert [answer.cached for answer in run(engine, [ask([*first, 2], 1), ask([*second, 2], 1)])] == [32, 0]


def test_a_long_prompt_holds_up_others_by_a_chunk_at_most_and_short_prompts_pass_it(llama: Any) -> None:
    engine = ServingEngine(llama, end_ids=(), tokens=4096, cache_tokens=0, chunk=8)
    short, long = prompts(3, 80)
    talking = engine.submit(ask(short, 40))
    engine.turn()
    waiting = engine.submit(ask(long, 1))
    late = engine.submit(ask(short, 1))
    first: dict[int, int] = {}
    for number in range(30):
        events = {event.handle: event for event in engine.turn()}
        assert talking in events, "each turn gives every running sequence a token"
        first |= {handle: number for handle in events if handle not in first}
    assert first[late] == 0 and 80 // 8 <= first[waiting] <= 80 // 4
    assert engine.stats.prompt_tokens == 3 + 80 + 3


def test_waiting_requests_come_in_as_memory_comes_free_and_the_youngest_gives_way(llama: Any) -> None:
    reference = TorchEngine(llama, end_ids=())
    engine = ServingEngine(llama, end_ids=(), tokens=256, cache_tokens=256, ahead=4)
    assert engine.context == CONTEXT
    rows = [ask(prompt, 60, seed=seed, sampling=WARM) for seed, prompt in enumerate(prompts(30, 31, 32, 33, 34, 35))]
    handles = [engine.submit(row) for row in rows]
    answers: dict[int, Answer] = {}
    waited = running = 0
    while not engine.idle:
        collect(answers, engine.turn())
        assert engine._store.used <= 256
        # Running sequences that go back to waiting have given way.
        waited += engine.stats.running < running and engine.stats.waiting > 0
        running = engine.stats.running
    assert waited
    for handle, row in zip(handles, rows, strict=True):
        assert_same(answers[handle], alone(reference, row))
    assert_nothing_is_held(engine)


def test_a_cancelled_request_frees_everything_at_once_and_says_nothing_more(llama: Any) -> None:
    engine = ServingEngine(llama, end_ids=(), tokens=4096, cache_tokens=1024, rows=2, chunk=8)
    handles = [engine.submit(ask(prompt, 50)) for prompt in prompts(3, 70, 20)]
    engine.turn()
    assert (engine.stats.running, engine.stats.waiting) == (2, 1)
    for handle in handles:
        engine.cancel(handle)
    engine.cancel(handles[0])
    engine.cancel(999)
    assert_nothing_is_held(engine)
    # What had run is known to the cache: a client that stops a text by itself has a next turn.
    [answer] = run(engine, [ask([*prompts(3, 70, 20)[1], 5], 1)])
    assert answer.cached == 5


class Only:
    """Allows some tokens, and ends after `count`."""

    def __init__(self, allowed: Sequence[int], count: int = 99, fails_at: int = 99) -> None:
        self.allowed, self.count, self.fails_at, self.seen = allowed, count, fails_at, 0

    def mask(self) -> list[int] | None:
        if self.seen == self.fails_at:
            raise RuntimeError("broken grammar")
        words = [0] * (VOCAB // 32 + 1)
        for token in self.allowed:
            words[token // 32] |= 1 << (token % 32)
        return words

    def accept(self, token: int) -> bool:
        assert token in self.allowed
        self.seen += 1
        return self.seen == self.count


def test_a_constraint_binds_its_own_row_and_logprobs_stay_the_models(llama: Any) -> None:
    engine = ServingEngine(llama, end_ids={1}, tokens=4096, cache_tokens=0)
    reference = TorchEngine(llama, end_ids={1})
    prompt, other = prompts(9, 14)
    free = ask(other, 12, sampling=WARM)
    rows = [ask(prompt, 12, constraint=Only([31, 32, 60], 5), sampling=sampling) for sampling in (GREEDY, WARM)]
    greedy, warm, beside = run(engine, [*rows, free])
    assert_same(beside, alone(reference, free))
    for answer in (greedy, warm):
        assert len(answer.ids) == 5 and set(answer.ids) <= {31, 32, 60} and answer.finish == "stop"
        logits = llama(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1).detach()
        expected = logits.gather(1, torch.tensor(answer.ids)[:, None])[:, 0].tolist()
        assert answer.logprobs == pytest.approx(expected, abs=1e-3)
        if answer is greedy:
            best = logits[:, [31, 32, 60]].argmax(-1)
            assert answer.ids == [[31, 32, 60][i] for i in best]


def test_a_failing_request_ends_alone_with_its_error() -> None:
    model = make_model()
    engine = ServingEngine(model, end_ids=(), tokens=256, cache_tokens=256)
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = torch.nan  # the head has weights of its own
    healthy = ServingEngine(make_model(), end_ids=(), tokens=256, cache_tokens=256)
    good = [ask([token for token in prompt if token != 60], 12) for prompt in prompts(9, 12)]
    bad = [
        ask([5, 60, 5], 20),
        ask([5, 6], 20, constraint=Only([4, 5], fails_at=3)),
        ask([5, 7], 20, constraint=Only([])),
    ]
    found = run(engine, [good[0], *bad, good[1]])
    expected = run(healthy, good)
    assert [row.ids for row in (found[0], found[4])] == [row.ids for row in expected]
    assert "logits are nan after 3 tokens" in str(found[1].error) and found[1].finish is None
    assert "after 5 tokens: RuntimeError: broken grammar" in str(found[2].error) and len(found[2].ids) == 3
    assert "allows no token" in str(found[3].error)
    assert_nothing_is_held(engine)
    # Neither the memory nor the cache passes nan on.
    assert [row.ids for row in run(engine, good * 3)] == [row.ids for row in run(healthy, good * 3)]


def test_what_a_broken_prompt_leaves_behind_reaches_nobody() -> None:
    """Cancelled before its logits were seen, moved while it ran, or beginning as another does."""
    model = make_model()
    cancelled, moved, alike = (
        ServingEngine(model, end_ids=(), tokens=2048, cache_tokens=2048, block=4, chunk=16) for _ in range(3)
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = torch.nan
    start, other = ([token % 60 for token in prompt] for prompt in prompts(30, 50))
    good = [ask(other, 9), ask([*start, 5, 5], 9), ask([7] * 40, 9)]
    expected = run(ServingEngine(make_model(), end_ids=(), tokens=2048, cache_tokens=2048), good)
    handle = cancelled.submit(ask([*[60] * 40, *start]))
    cancelled.turn()
    cancelled.cancel(handle)
    moved.submit(ask([4] * 3, 1))  # ends as the other one fails, whose place is then moved
    moved.submit(ask([5, 60, 5], 20))
    assert [event.error is None for event in moved.turn()] == [True, False]
    broken = alike.submit(ask([*start, 60, *other], 5))
    rows = [alike.submit(request) for request in good]
    answers: dict[int, Answer] = {}
    while not alike.idle:
        collect(answers, alike.turn())
    assert "nan" in str(answers[broken].error) and answers[rows[1]].ids == expected[1].ids
    for engine in (cancelled, moved, alike):
        assert [row.ids for row in run(engine, good)] == [row.ids for row in expected]
        assert all(slab.values.isfinite().all() for slab in engine._store._slabs + engine._store._spare)


def test_requests_that_cannot_be_run_are_refused_before_they_wait(llama: Any) -> None:
    engine = ServingEngine(llama, tokens=2048, cache_tokens=0)
    for bad, message in (
        (ask([]), "empty"),
        (ask([2] * CONTEXT), "has 96 tokens and the context 96"),
        (ask([VOCAB]), "outside the vocabulary"),
        (ask([2], 0), "max_tokens is 0"),
        (ask([2], stop=((),)), "stop sequence is empty"),
        (ask([2], sampling=Sampling(top_p=0)), "top_p is 0"),
        (ask([2], sampling=Sampling(logit_bias=((VOCAB, 1.0),))), "logit_bias holds id .* outside the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(bad)
    assert engine.idle
    with pytest.raises(ValueError, match="chunk is 0"):
        ServingEngine(llama, chunk=0)


@pytest.mark.parametrize("masked", [False, True])
def test_a_chunk_may_attend_in_pieces_and_in_half_precision(
    llama: Any, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    """In two halves, or, as where torch's kernel for CPUs has no part, under masks."""
    monkeypatch.setattr("engine.packed.QUERIES", 7)
    if masked:
        monkeypatch.setattr("engine.packed._FLASH", None)
    engine = ServingEngine(llama, end_ids=(), tokens=2048, cache_tokens=256, chunk=40)
    rows = [ask(prompt, 9, sampling=WARM, seed=seed) for seed, prompt in enumerate(prompts(70, 23, 14))]
    for answer, row in zip(run(engine, rows), rows, strict=True):
        assert_same(answer, alone(TorchEngine(llama, end_ids=()), row))
    half = ServingEngine(make_model().bfloat16(), end_ids=(), tokens=2048, cache_tokens=256, chunk=40)
    assert not half._packed.plain and half._packed._masked == masked
    assert [len(answer.ids) for answer in run(half, rows)] == [9, 9, 9]


def test_models_with_attention_of_their_own_are_served_one_sequence_after_the_other() -> None:
    from transformers import AutoModelForCausalLM, GPTJConfig

    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, rotary_dim=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    reference = TorchEngine(model, end_ids=())
    assert reference.tree.plain
    engine = ServingEngine(model, end_ids=(), tokens=2048, cache_tokens=256, chunk=8)
    assert engine._packed.plain and not ServingEngine(make_model(), tokens=256, cache_tokens=0)._packed.plain
    rows = [ask(prompt, 9, sampling=WARM, seed=seed) for seed, prompt in enumerate(prompts(20, 23, 20))]
    for answer, row in zip(run(engine, rows + rows), rows + rows, strict=True):
        assert_same(answer, alone(reference, row))
