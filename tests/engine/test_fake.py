"""The fakes keep the interface's rules and its books."""

from __future__ import annotations

import math

import pytest

from engine.fake import FakeEngine, FakeVerifier, Tree
from engine.interface import Engine, Sampling, Usage, Verifier
from engine.rules import uniform


def count_up(ids: object, seed: int, position: int) -> int:
    return position * 10 + seed


def test_a_scripted_engine_generates_what_the_function_says_and_counts_it() -> None:
    engine: Engine = FakeEngine(count_up)
    first, second = engine.open([[1, 2], [1, 2]], [3, 4])
    [out] = engine.step([first], Sampling(), 2)
    assert (out.ids, out.finish, first.ids) == ([23, 33], "length", [1, 2, 23, 33])
    assert engine.usage() == Usage(prompt=2, generated=2, fed=1)
    before = engine.usage()
    engine.step(engine.fork(first, [5, 6]), Sampling(), 1)
    assert engine.usage() - before == Usage(generated=2, fed=2)
    assert second.ids == [1, 2]


def test_a_tree_draws_its_completions_by_their_share_with_true_logprobs() -> None:
    engine = FakeEngine(Tree({(1,): [[5, 6, 0], [5, 7, 0], [5, 7, 0], [5, 7, 0]]}), end_ids={0})
    seqs = engine.open([[1]] * 400, range(400))
    outs = engine.step(seqs, Sampling(logprobs=2), 10)
    rare = [out for out in outs if out.ids == [5, 6, 0]]
    assert {tuple(out.ids) for out in outs} == {(5, 6, 0), (5, 7, 0)} and 60 < len(rare) < 140
    assert rare[0].finish == "eos" and rare[0].logprobs == [0.0, math.log(0.25), 0.0]
    assert rare[0].top[1] == [(7, math.log(0.75)), (6, math.log(0.25))]
    [greedy] = engine.step(engine.open([[1]], [0]), Sampling(temperature=0), 10)
    assert greedy.ids == [5, 7, 0]


def test_a_stop_sequence_counts_only_where_all_of_it_is_new() -> None:
    engine = FakeEngine(lambda ids, seed, position: 7)
    [seq] = engine.open([[7]], [0])
    assert [engine.step([seq], Sampling(), 9, [[7, 7]])[0].ids for _ in range(2)] == [[7, 7], [7, 7]]
    engine.step([seq], Sampling(), 1, [[7, 7]])
    [out] = engine.step([seq], Sampling(), 1, [[7, 7]])
    assert out.finish == "length"


def test_the_context_ends_a_sequence_and_a_full_one_gets_nothing() -> None:
    engine = FakeEngine(count_up, context=3)
    [seq] = engine.open([[1]], [0])
    [out] = engine.step([seq], Sampling(), 9)
    assert (len(out.ids), out.finish) == (2, "context")
    [out] = engine.step([seq], Sampling(), 9)
    assert (out.ids, out.finish) == ([], "context")


def test_a_verifier_scores_all_ids_so_far_and_counts_only_new_ones() -> None:
    verifier: Verifier = FakeVerifier(lambda ids: len(ids) / 10)
    [seq] = verifier.open([[1, 2]])
    left, right = verifier.fork(seq, 2)
    assert verifier.extend([left, right], [[3], [3, 4]]) == [0.3, 0.4]
    assert verifier.usage() == Usage(prompt=5)
    verifier.close([left])
    with pytest.raises(ValueError, match="closed"):
        verifier.extend([left], [[1]])
    with pytest.raises(ValueError, match="empty"):
        verifier.extend([right], [[]])


def test_bad_calls_are_refused_with_the_value() -> None:
    engine = FakeEngine(count_up, context=4, vocab=100)
    for prompt, message in (([], "empty"), ([1] * 4, "4 tokens"), ([1, 100], "id 100"), ([-1], "id -1")):
        with pytest.raises(ValueError, match=message):
            engine.open([prompt], [0])
    [seq] = engine.open([[1]], [0])
    with pytest.raises(ValueError, match="twice"):
        engine.step([seq, seq], Sampling(), 1)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        engine.step([seq], Sampling(), 0)
    with pytest.raises(ValueError, match=r"top_p is 1\.5"):
        engine.step([seq], Sampling(top_p=1.5), 1)
    with pytest.raises(ValueError, match="stop sequence is empty"):
        engine.step([seq], Sampling(), 1, [[]])
    engine.close([seq])
    with pytest.raises(ValueError, match="closed"):
        engine.close([seq])


def test_uniform_numbers_depend_on_seed_and_position_alone_and_fill_the_interval() -> None:
    numbers = [uniform(seed, position) for seed in range(-20, 20) for position in range(100)]
    assert len(set(numbers)) == len(numbers) and 0 <= min(numbers) < 0.01 and 0.99 < max(numbers) < 1
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02
    assert uniform(1 << 70, 5) == uniform(0, 5)
