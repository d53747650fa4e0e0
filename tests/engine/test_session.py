"""Search on a shared engine, with real threads: the tokens of the torch engine, and no one waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from engine.fake import FakeVerifier
from engine.interface import Sampling
from engine.requests import Event, Request
from engine.serving import ServingEngine
from engine.session import Cancelled, Mailbox, OnOwner, SharedEngine
from engine.torch import TorchEngine
from tests.engine.models import make_model, prompts

WARM = Sampling(logprobs=2)


class Owner:
    """A worker's loop: turns while there is something to do, and sleeps otherwise."""

    def __init__(self, serving: ServingEngine) -> None:
        self.serving, self.events = serving, list[Event]()
        self.woken = threading.Event()
        self.mailbox = Mailbox(serving, self.woken.set)
        self.ended = False

    def run(self) -> None:
        torch.set_num_threads(1)
        while not self.ended:
            self.mailbox.take()
            self.events += [event for event in self.serving.turn() if not self.mailbox.deliver(event)]
            if self.serving.idle:
                self.woken.wait()
                self.woken.clear()
        self.mailbox.close()


@contextmanager
def running(serving: ServingEngine) -> Iterator[Owner]:
    owner = Owner(serving)
    thread = threading.Thread(target=owner.run)
    thread.start()
    try:
        yield owner
    finally:
        owner.ended = True
        owner.woken.set()
        thread.join(60)
        assert not thread.is_alive()


def tree(engine: SharedEngine | TorchEngine, prompt: list[int], seed: int) -> list[list[int]]:
    """A small search: forks, steps of several lengths and a stop."""
    [root] = engine.open([prompt], [0])
    seqs = engine.fork(root, range(seed, seed + 4))
    outs = engine.step(seqs, WARM, 9, stop=[[7]])
    more = engine.fork(seqs[1], range(50, 53))
    outs += engine.step([*seqs[2:], *more], WARM, [3, 4, 5, 6, 7])
    engine.close([root, *seqs, *more])
    return [[*out.ids, len(out.top), out.finish] for out in outs]  # type: ignore[list-item]


def test_searches_in_threads_draw_what_they_draw_alone_and_share_prompts_with_requests() -> None:
    model = make_model()
    starts = prompts(40, 33, 12)
    with running(ServingEngine(model, end_ids={1}, tokens=4096, cache_tokens=4096, block=1)) as owner:
        engines = [SharedEngine(owner.mailbox) for _ in starts]
        owner.mailbox.call(lambda: owner.serving.submit(Request(tuple(starts[0]), max_tokens=20, seed=3)))
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(tree, engines, starts, range(3)))
        ran = owner.mailbox.call(lambda: owner.serving.stats)
    reference = TorchEngine(model, end_ids={1})
    assert found == [tree(reference, start, seed) for seed, start in enumerate(starts)]
    [seq] = reference.open([starts[0]], [3])
    [expected] = reference.step([seq], Sampling(), 20)
    assert [token for event in owner.events for token in event.ids] == expected.ids
    # The prompts ran once, each sequence's last token of a step once more; the tree's own books say the same.
    total = sum(engine.usage().prompt for engine in engines)
    assert sum(map(len, starts)) - 40 <= total <= sum(map(len, starts)) + 3 * 3
    assert ran.running == ran.waiting == 0 and ran.prompt_tokens < sum(map(len, starts)) + 40


def test_a_verifiers_calls_run_on_the_owners_thread_and_their_errors_come_back() -> None:
    threads = []

    def score(ids: object) -> float:
        threads.append(threading.current_thread())
        return 0.5

    with running(ServingEngine(make_model(), tokens=256, cache_tokens=0)) as owner:
        verifier = OnOwner(owner.mailbox, FakeVerifier(score))
        [seq] = verifier.open([[2, 3]])
        assert verifier.extend(verifier.fork(seq, 1), [[4]]) == [0.5]
        assert threads and threading.current_thread() not in threads
        with pytest.raises(ValueError, match="empty"):
            verifier.extend([seq], [[]])
        with pytest.raises(ValueError, match="outside the vocabulary"):
            owner.mailbox.run([Request((5,)), Request((500,))], threading.Event())
        assert owner.mailbox.run([], threading.Event()) == []
        assert verifier.usage().prompt > 0


def test_a_cancelled_search_and_a_closed_engine_end_the_threads_that_wait() -> None:
    serving = ServingEngine(make_model(), end_ids=(), tokens=256, cache_tokens=64)
    [prompt] = prompts(9)
    with running(serving) as owner, ThreadPoolExecutor(2) as pool:
        engine, other = SharedEngine(owner.mailbox), SharedEngine(owner.mailbox)
        taken = threading.Event()
        hold = pool.submit(owner.mailbox.call, lambda: taken.wait(60))  # the owner stands still meanwhile
        cancelled = pool.submit(lambda: engine.step(engine.open([prompt], [0]), WARM, 80))
        engine.cancel()
        taken.set()
        with pytest.raises(Cancelled):
            cancelled.result(60)
        assert hold.result(60)
        with pytest.raises(Cancelled):
            engine.step(engine.open([prompt], [0]), WARM, 1)
        seqs = other.open([prompt], [0])
        assert len(other.step(seqs, WARM, 5)[0].ids) == 5
    with pytest.raises(Cancelled, match="closed"):
        other.step(seqs, WARM, 1)
    assert serving.idle and serving._store.used == 0
