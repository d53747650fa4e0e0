"""Faults found in Search and Learn, none of which may come (back) here."""

from __future__ import annotations

import pytest

from search.methods import METHODS
from search.options import Beam, BestOfN, Dvts, Greedy, Majority, Options, Weighted
from tests.search.worlds import DELIMITER, END, PROMPT, WatchedVerifier, grown, tree

GOOD, BAD = [2, DELIMITER, 3, DELIMITER, 10, END], [4, DELIMITER, 5, DELIMITER, 11, END]
SCORES = {2: 0.9, 3: 0.9, 10: 0.9, 4: 0.4, 5: 0.3, 11: 0.2}


def of(name: str, n: int = 4) -> Options:
    return Greedy() if name == "greedy" else METHODS[name].options.model_validate({"name": name, "n": n})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_counts_the_tokens_that_engine_and_verifier_saw(name: str) -> None:
    engine, verifier = tree(GOOD, BAD), WatchedVerifier(SCORES)
    [outcome] = grown(of(name), engine, verifier)
    assert outcome.spent.generated == engine.usage().generated > 0
    assert outcome.spent.prompt == engine.usage().prompt
    assert outcome.spent.scored + outcome.spent.prompt_scored == verifier.usage().prompt
    assert (outcome.spent.scored > 0) == METHODS[name].scored
    for candidate in outcome.candidates:
        assert candidate.generated == 6


@pytest.mark.parametrize("kind", [Beam, Dvts])
def test_a_look_ahead_is_scored_and_decides(kind: type[Beam] | type[Dvts]) -> None:
    # Step 2 looks worse than step 4, but leads to 3, which is sure; 4 leads to 5, which is wrong.
    scores = {2: 0.4, 3: 1.0, 10: 1.0, 4: 0.6, 5: 0.0, 11: 0.0}
    answers = {}
    for lookahead in (0, 2):
        engine, verifier = tree(GOOD, BAD), WatchedVerifier(scores)
        [outcome] = grown(kind(n=8, width=8, lookahead=lookahead), engine, verifier, max_step_tokens=8)
        answers[lookahead] = outcome.answer
        assert outcome.spent.generated == engine.usage().generated
        assert outcome.spent.scored == outcome.spent.generated == verifier.usage().prompt - len(PROMPT)
    assert answers == {0: "11", 2: "10"}


@pytest.mark.parametrize("name", ["majority", "weighted", "best_of_n", "beam", "dvts", "rebase", "particles"])
def test_unfinished_siblings_do_not_vote(name: str) -> None:
    unfinished = [4, DELIMITER, 11, DELIMITER, *[5] * 20, END]  # its answer can be read, its end never comes
    engine = tree(GOOD, *[unfinished] * 3)
    verifier = WatchedVerifier({4: 0.95, 11: 0.95, 5: 0.95, 2: 0.94, 3: 0.94, 10: 0.94})
    [outcome] = grown(of(name, 16), engine, verifier, max_tokens=10)
    cut = [candidate for candidate in outcome.candidates if not candidate.finished]
    assert outcome.answer == (None if len(cut) == len(outcome.candidates) else "10")
    assert cut and all(candidate.answer == "11" for candidate in cut)
    if name in ("majority", "weighted", "best_of_n", "rebase"):
        assert outcome.answer == "10"


def test_two_problems_with_equal_texts_are_two_problems() -> None:
    engine = tree(GOOD, BAD)
    outcomes = grown(Majority(n=1), engine, seeds=range(8))
    assert len(outcomes) == 8
    assert {outcome.answer for outcome in outcomes} == {"10", "11"}
    assert sum(outcome.spent.generated for outcome in outcomes) == engine.usage().generated


@pytest.mark.parametrize(("aggregation", "answer"), [("last", "11"), ("min", "10"), ("prod", "10"), ("mean", "10")])
@pytest.mark.parametrize("kind", [BestOfN, Weighted])
def test_votes_follow_the_aggregation(kind: type[BestOfN] | type[Weighted], aggregation: str, answer: str) -> None:
    # Four solutions drawn, both kinds among them as often: 10 is even, 11 begins badly and ends best.
    verifier = WatchedVerifier({2: 0.8, 3: 0.8, 10: 0.8, 4: 0.1, 5: 0.5, 11: 0.9})
    seed = next(
        seed
        for seed in range(100)
        if [one.answer for one in grown(Majority(n=4), tree(GOOD, BAD), seeds=[seed])[0].candidates].count("10") == 2
    )
    [outcome] = grown(kind(n=4), tree(GOOD, BAD), verifier, seeds=[seed], aggregation=aggregation)
    assert outcome.answer == answer


@pytest.mark.parametrize("name", ["best_of_n", "beam", "dvts", "rebase", "particles"])
def test_an_empty_last_step_is_not_scored(name: str) -> None:
    verifier = WatchedVerifier(SCORES)
    [outcome] = grown(of(name), tree([2, DELIMITER, 10, DELIMITER, END]), verifier)
    assert outcome.candidates[0].step_scores == [0.9, 0.9]
    assert outcome.candidates[0].finished
    assert [END] not in verifier.seen
    assert outcome.spent.scored == outcome.spent.generated - sum(node.ids == [END] for node in outcome.nodes)


def test_a_blank_step_in_the_middle_is_read_with_the_next_one() -> None:
    verifier = WatchedVerifier(SCORES)
    [outcome] = grown(Beam(n=1, width=1), tree([2, DELIMITER, DELIMITER, 10, END]), verifier)
    assert verifier.seen == [[2, DELIMITER], [DELIMITER, 10, END]]
    assert outcome.spent.scored == outcome.spent.generated == 5


@pytest.mark.parametrize("name", METHODS)
def test_many_problems_share_the_calls_of_one(name: str) -> None:
    calls = []
    for problems in (1, 6):
        engine = tree(GOOD)
        grown(of(name), engine, WatchedVerifier(SCORES), seeds=range(problems))
        calls.append(len(engine.steps))
        assert max(engine.steps) >= problems
    assert calls[0] == calls[1]


@pytest.mark.parametrize("name", METHODS)
def test_the_limit_of_a_step_is_not_the_limit_of_a_solution(name: str) -> None:
    long = [*[2, 2, DELIMITER] * 4, 10, END]
    for total, finished in ((14, True), (13, False)):
        [outcome] = grown(of(name), tree(long), WatchedVerifier(SCORES), max_tokens=total, max_step_tokens=3)
        assert {candidate.finished for candidate in outcome.candidates} == {finished}
        assert {candidate.generated for candidate in outcome.candidates} == {total}


@pytest.mark.parametrize("kind", [Beam, Dvts])
def test_the_best_solution_is_kept_not_the_first(kind: type[Beam] | type[Dvts]) -> None:
    early, late = [2, DELIMITER, 11, END], [2, DELIMITER, 3, DELIMITER, 3, DELIMITER, 10, END]
    verifier = WatchedVerifier({2: 0.5, 11: 0.3, 3: 0.8, 10: 0.9})
    [outcome] = grown(kind(n=4, width=4, vote="best"), tree(early, early, late), verifier, seeds=[2])
    answers = [candidate.answer for candidate in outcome.candidates]
    assert "11" in answers, "the early solution was among them"
    assert outcome.answer == "10"


@pytest.mark.parametrize("name", METHODS)
def test_a_search_goes_on_from_ids_and_never_reads_a_prompt_again(name: str) -> None:
    # Nothing is encoded anywhere: the engine is opened on the prompt alone, and every solution in the tree is
    # one that the engine knows, token for token.
    engine = tree(GOOD, BAD)
    [outcome] = grown(of(name), engine, WatchedVerifier(SCORES))
    assert engine.opened == [PROMPT]
    for candidate in outcome.candidates:
        ids: list[int] = []
        node = candidate.node
        while node >= 0:
            ids = outcome.nodes[node].ids + ids
            node = outcome.nodes[node].parent
        assert ids in (GOOD, BAD)
