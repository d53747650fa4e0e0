"""n-grams of test items in a corpus, and of a text in test items."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acorn.ngrams import Index, TestSets, _chunks, terms, words

LETTERS = st.lists(st.sampled_from("abc"), max_size=40).map(" ".join)


def windows(text: str, n: int) -> set[tuple[str, ...]]:
    split = words(text)
    return {tuple(split[start : start + n]) for start in range(len(split) - n + 1)}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(items=st.lists(LETTERS, max_size=5), corpus=st.lists(LETTERS, max_size=5), n=st.integers(2, 6))
def test_the_index_finds_what_sets_of_n_grams_find(items: list[str], corpus: list[str], n: int) -> None:
    index = Index(items, n)
    known = set().union(*(windows(text, n) for text in corpus))
    assert index.counts.tolist() == [len(windows(item, n)) for item in items]
    assert index.of_items(index.search(corpus)).tolist() == [len(windows(item, n) & known) for item in items]


def test_case_punctuation_and_accents_do_not_hide_an_overlap() -> None:
    assert words("L'élève A-t-il fini?  3,000 FOIS") == words("l eleve a t il fini 3 000 fois")


def test_a_long_text_loses_no_n_gram_where_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acorn.ngrams.CHUNK_WORDS", 1000)
    tokens = [str(place) for place in range(2030)]
    found = [piece[start : start + 13] for piece in _chunks(tokens, 13) for start in range(len(piece) - 12)]
    assert found == [tokens[start : start + 13] for start in range(len(tokens) - 12)]


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acorn.ngrams.CHUNK_WORDS", 10_000)
    index = Index(["the quick brown fox jumps over the lazy dog and then sleeps until noon"], 13)
    peaks = []
    for size in (20, 80):
        random = np.random.default_rng(0)
        corpus = (" ".join(map(str, random.integers(0, 999, 2000))) for _ in range(size))
        tracemalloc.start()
        assert not index.search(corpus).any()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    one=st.lists(LETTERS, max_size=4),
    other=st.lists(LETTERS, max_size=4),
    text=LETTERS,
    n=st.integers(2, 6),
    most=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_a_text_is_too_close_to_test_sets_by_the_share_that_sets_of_n_grams_give(
    one: list[str], other: list[str], text: str, n: int, most: float
) -> None:
    def ngrams(of: str) -> list[tuple[str, ...]]:
        split = terms(of)
        return [tuple(split[start : start + n]) for start in range(len(split) - n + 1)]

    own, known = ngrams(text), {each for test in one + other for each in ngrams(test)}
    share = sum(each in known for each in own) / max(len(own), 1)
    close = (bool(text) and text in one + other) or share > most
    found = TestSets({"one": one, "other": other}, n, most).overlapping(text)
    assert bool(found) == close
    if found and text not in one + other:
        shared = {
            name: sum(each in {g for t in tests for g in ngrams(t)} for each in own)
            for name, tests in (("one", one), ("other", other))
        }
        assert shared[found] == max(shared.values())


def test_numbers_and_operators_tell_word_problems_apart() -> None:
    assert terms("Ida has 1,200 pens: 3.5*2 = 7!") == ["ida", "has", "1,200", "pens", "3.5", "*", "2", "=", "7"]
