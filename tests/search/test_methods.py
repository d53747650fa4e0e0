"""The methods on worlds where every token is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acorn.answers import Answers
from engine.fake import Tree
from engine.interface import StepOut
from engine.rules import uniform
from search.adaptive import leads_all, leads_second
from search.budget import Budget
from search.confidence import lowest_group, passing
from search.methods import METHODS
from search.options import (
    Adaptive,
    Beam,
    BestOfN,
    DeepConf,
    Dvts,
    Greedy,
    Majority,
    Rebase,
    Weighted,
)
from search.particles import entropy, flatten, resample, softmax
from search.rebase import shares
from search.sampling import prefix
from search.setup import Setup
from search.votes import pass_at_k
from tests.search.test_faults import BAD, GOOD, SCORES, of
from tests.search.worlds import DELIMITER, END, PROMPT, Letters, WatchedEngine, WatchedVerifier, grown, tree


def test_greedy_takes_the_most_probable_solution_and_scores_nothing() -> None:
    [outcome] = grown(Greedy(), tree(GOOD, BAD, BAD), WatchedVerifier(SCORES))
    assert (outcome.answer, outcome.spent.generated, outcome.spent.scored) == ("11", 6, 0)
    assert [(node.parent, node.ids) for node in outcome.nodes] == [(-1, [4, 1]), (0, [5, 1]), (1, [11, 0])]


def test_solutions_drawn_whole_are_scored_in_one_call_and_each_of_their_steps_by_itself() -> None:
    verifier = WatchedVerifier(SCORES)
    [outcome] = grown(Weighted(n=8), tree(GOOD, BAD), verifier, seeds=[3])
    assert verifier.calls == 1 and len(outcome.candidates) == 8
    for one in outcome.candidates:
        assert len(one.step_scores) == len(one.text.split("\n\n")) == 3


def test_beam_search_grows_the_tree_that_it_says() -> None:
    # One beam of width 2 over a world without chance: every step twice, the better child kept.
    [outcome] = grown(Beam(n=2, width=2), tree(GOOD), WatchedVerifier(SCORES))
    assert [(node.parent, node.ids, node.score) for node in outcome.nodes] == [
        (-1, [2, 1], 0.9),
        (-1, [2, 1], 0.9),
        (0, [3, 1], 0.9),
        (0, [3, 1], 0.9),
        (2, [10, 0], 0.9),
        (2, [10, 0], 0.9),
    ]
    assert [candidate.step_scores for candidate in outcome.candidates] == [[0.9] * 3] * 2
    assert (outcome.spent.generated, outcome.spent.scored) == (12, 12)


def test_dvts_keeps_a_tree_that_beam_search_would_drop() -> None:
    scores = {2: 0.6, 3: 0.6, 10: 0.9, 4: 0.7, 5: 0.7, 11: 0.1}
    seeds = range(20)
    answers = {}
    for kind in (Beam, Dvts):
        outcomes = grown(kind(n=8, width=2, vote="best"), tree(GOOD, BAD), WatchedVerifier(scores), seeds=seeds)
        answers[kind] = [{one.answer for one in outcome.candidates} for outcome in outcomes]
    assert sum("10" in found for found in answers[Dvts]) > sum("10" in found for found in answers[Beam])


def test_rebase_shares_the_width_by_reward() -> None:
    assert shares([0.9, 0.1], 8, 0.2) == [8, 0]
    assert shares([0.5, 0.5, 0.5], 8, 0.2) == [3, 3, 2]
    assert shares([], 8, 0.2) == []
    [outcome] = grown(Rebase(n=6), tree(GOOD), WatchedVerifier(SCORES))
    assert len(outcome.candidates) == 6 and len(outcome.nodes) == 18


def test_particles_are_drawn_in_proportion_to_their_weight() -> None:
    for tooth in range(10):
        drawn = resample([0.5, 0.25, 0.25], 4, tooth / 10)
        assert (drawn.count(0), drawn.count(1), drawn.count(2)) == (2, 1, 1)
    assert resample([0.0, 1.0], 3, 0.0) == [1, 1, 1]


def test_entropic_weights_are_flattened_just_enough() -> None:
    logits = [9.0, 0.0, 0.0, 0.0]
    assert entropy(softmax(logits, 1.0)) < 0.01
    assert entropy(softmax(logits, flatten(logits, 1.0, 0.7))) == pytest.approx(0.7, abs=1e-6)
    assert flatten([1.0, 1.0], 1.0, 0.9) == 1.0


@pytest.mark.parametrize("name", ["particles", "entropic_particles"])
def test_particles_prefer_what_the_verifier_prefers(name: str) -> None:
    outcomes = grown(of(name, 8), tree(GOOD, BAD), WatchedVerifier(SCORES), seeds=range(10))
    assert [outcome.answer for outcome in outcomes] == ["10"] * 10
    assert all(len(outcome.candidates) == 8 for outcome in outcomes)


def test_adaptive_voting_stops_when_the_vote_is_decided() -> None:
    [outcome] = grown(Adaptive(n=16), tree(GOOD))
    # P(p1 > p2) for v votes against none is 1 - 2^-(v + 1): 0.9375 at three, 0.96875 at four.
    assert len(outcome.candidates) == 4
    [outcome] = grown(Adaptive(n=16, stop="dirichlet"), tree(GOOD))
    assert len(outcome.candidates) == 4
    assert leads_second([3]) == 0.9375
    assert leads_all([3]) == pytest.approx(0.9375, abs=1e-6)
    assert leads_all([3, 1]) < leads_second([3, 1]) == pytest.approx(0.8125)


class HesitatingEngine(WatchedEngine):
    """The mean log-probability of the alternatives is -3 where it is sure, -1 at the letters 4 and 5."""

    def step(self, *arguments: Any, **more: Any) -> list[StepOut]:
        outs = super().step(*arguments, **more)
        return [replace(out, top=[[(token, -1.0 if token in (4, 5) else -3.0)] for token in out.ids]) for out in outs]


def test_deepconf_stops_samples_that_lose_confidence() -> None:
    unsure, sure = [2, 2, 4, 5, DELIMITER, 2, 11, END], [2, 2, 3, 3, DELIMITER, 2, 10, END]
    options = DeepConf(n=12, warmup=4, keep=0.25, window=2, check=2, top=2, consensus=1)
    engine = HesitatingEngine(Tree({tuple(PROMPT): [sure, unsure]}))
    outcomes = grown(options, engine, seeds=range(8))
    for outcome in outcomes:
        warm, later = outcome.candidates[:4], outcome.candidates[4:]
        assert len(later) == 8 and all(one.finished for one in warm)
        if any(one.answer == "10" for one in warm):  # so the threshold is 3
            assert all(one.finished == (one.answer == "10") for one in later)
            assert outcome.answer == "10"
    cut = [one for outcome in outcomes for one in outcome.candidates if not one.finished]
    assert cut and all((one.generated, one.weight) == (4, 1.0) for one in cut), "at the first check that shows it"
    assert sum(outcome.spent.generated for outcome in outcomes) == engine.usage().generated


def test_deepconf_stops_drawing_when_the_answers_agree() -> None:
    [outcome] = grown(DeepConf(n=12, warmup=4), HesitatingEngine(Tree({tuple(PROMPT): [GOOD]})))
    assert len(outcome.candidates) == 4


def test_groups_and_thresholds_of_deepconf() -> None:
    assert (lowest_group([4.0, 1.0, 3.0], 2), lowest_group([2.0], 9)) == (2.0, 2.0)
    assert (passing([1.0, 2.0, 3.0, 4.0], 0.5), passing([1.0, 2.0], 0.1)) == (3.0, 2.0)


def test_a_vote_at_a_smaller_n_is_the_prefix_of_a_larger_sampling() -> None:
    for budget in (None, 150):
        pool = grown(Weighted(n=8), tree(GOOD, BAD), WatchedVerifier(SCORES), seeds=[3], max_tokens=10)[0]
        for kind in (Weighted, BestOfN, Majority):
            for n in (1, 2, 5, 8):
                [alone] = grown(
                    kind(n=n), tree(GOOD, BAD), WatchedVerifier(SCORES), seeds=[3], max_tokens=10, tokens=budget
                )
                setup = Setup(Budget(10, tokens=budget), Letters(), Answers())
                cut = prefix(pool, n, kind(n=n).name, setup, room=10)
                assert (cut.answer, cut.chosen, cut.spent) == (alone.answer, alone.chosen, alone.spent)
                assert [one.text for one in cut.candidates] == [one.text for one in alone.candidates]


def test_pass_at_k_is_unbiased() -> None:
    assert pass_at_k(4, 2, 1) == 0.5
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert (pass_at_k(4, 0, 4), pass_at_k(4, 1, 4)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="needs at least 5 samples"):
        pass_at_k(4, 2, 5)


def noise(ids: object, seed: int, position: int) -> int:
    """A model that ends, cuts steps, letters and answers by chance."""
    drawn = uniform(seed, position)
    return END if drawn < 0.1 else DELIMITER if drawn < 0.4 else 10 + int(drawn * 100) % 3 if drawn < 0.5 else 2


def judged(ids: object) -> float:
    return uniform(hash(tuple(ids)), 0)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    n=st.sampled_from([4, 8, 16]),
    max_tokens=st.integers(1, 20),
    step=st.integers(1, 20),
    spare=st.none() | st.integers(0, 300),
    lookahead=st.integers(0, 4),
    batch=st.integers(1, 4),
    context=st.integers(4, 40),
    seed=st.integers(0, 10**6),
)
def test_no_search_spends_more_than_its_budget_and_all_is_counted(
    name: str,
    n: int,
    max_tokens: int,
    step: int,
    spare: int | None,
    lookahead: int,
    batch: int,
    context: int,
    seed: int,
) -> None:
    options = of(name, n)
    if isinstance(options, Beam | Dvts):
        options = options.model_copy(update={"lookahead": lookahead})
    tokens = None if spare is None else max_tokens * (2 if METHODS[name].scored else 1) + spare
    engine, verifier = WatchedEngine(noise, context), WatchedVerifier(judged)
    limits = {"max_tokens": max_tokens, "max_step_tokens": step, "tokens": tokens}
    seeds = range(seed, seed + 3)
    outcomes = grown(options, engine, verifier, seeds, batch, "mean", **limits)
    assert sum(outcome.spent.generated for outcome in outcomes) == engine.usage().generated
    scored = sum(outcome.spent.scored for outcome in outcomes)
    assert scored == sum(len(step) for step in verifier.seen)
    for outcome in outcomes:
        assert outcome.spent.total <= (tokens or math.inf)
        assert outcome.candidates, "the budget pays for at least one"
        assert all(one.generated <= max_tokens for one in outcome.candidates)
        ran_out = [one.finished or one.generated == min(max_tokens, context - 2) for one in outcome.candidates]
        assert any(ran_out) or name == "deepconf", "one solution is always let to its end"
    assert not any(handle.open for handle in engine.handles + verifier.handles)
    again = grown(
        options, WatchedEngine(noise, context), WatchedVerifier(judged), range(seed, seed + 3), 3, "mean", **limits
    )
    assert [vars(one) for one in again] == [vars(one) for one in outcomes], "nothing depends on the batch"


@pytest.mark.parametrize("name", METHODS)
def test_an_impossible_budget_is_refused(name: str) -> None:
    need = 64 if METHODS[name].scored else 32
    with pytest.raises(ValueError, match=rf"cannot pay for one solution by {name}.*at least {need}"):
        grown(of(name), tree(GOOD), WatchedVerifier(SCORES), tokens=need - 1)


def test_a_method_that_scores_is_refused_without_a_verifier() -> None:
    with pytest.raises(ValueError, match=r"dvts needs a process reward model.*majority"):
        grown(Dvts(n=4), tree(GOOD))


def test_a_prompt_over_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 0 has 2 tokens, the model's context 2"):
        grown(Greedy(), WatchedEngine(noise, context=2))
