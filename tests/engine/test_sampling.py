"""Draws follow the distribution, cuts keep what they say, and the random numbers are the documented ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.interface import Sampling
from engine.rules import uniform
from engine.sampling import best, draw, uniforms, weigh


def logits(rows: int, vocab: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * spread


def test_vectorised_uniform_numbers_are_the_plain_ones() -> None:
    seeds, positions = [0, 1, -5, 1 << 63, 12345678901234567890], [0, 3, 1000, 7, 1 << 33]
    found = uniforms(seeds, positions, 9)
    assert found.tolist() == [[uniform(s, p + i) for i in range(9)] for s, p in zip(seeds, positions, strict=True)]


@pytest.mark.parametrize("vocab", [50, 2500])
def test_draws_follow_the_softmax(vocab: int) -> None:
    row = logits(1, vocab)
    count = 2000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, logprobs = draw(row.expand(count, -1), numbers, Sampling())
    shares = torch.bincount(ids, minlength=vocab) / count
    assert (shares - row.softmax(-1)[0]).abs().max() < 2 / count
    assert torch.equal(ids, ids.sort().values), "the draw inverts the cumulative distribution in the order of ids"
    assert torch.allclose(logprobs, row.log_softmax(-1)[0][ids], atol=1e-5)


@pytest.mark.parametrize("vocab", [50, 2500])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_k=5),
        Sampling(top_p=0.6),
        Sampling(top_p=0.999),
        Sampling(min_p=0.1),
        Sampling(temperature=1.4, top_k=20, top_p=0.8, min_p=0.05),
    ],
)
def test_cuts_keep_the_tokens_that_transformers_keeps(vocab: int, sampling: Sampling) -> None:
    row = logits(1, vocab, 1.0)
    warped = TemperatureLogitsWarper(sampling.temperature)(None, row)
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(None, warped)
    if sampling.min_p:
        warped = MinPLogitsWarper(sampling.min_p)(None, warped)
    count = 2000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, _ = draw(row.expand(count, -1), numbers, sampling)
    shares = torch.bincount(ids, minlength=vocab) / count
    assert (shares - warped.softmax(-1)[0]).abs().max() < 2 / count


@pytest.mark.parametrize("vocab", [50, 2500])
def test_the_largest_uniform_number_draws_no_token_of_probability_0(vocab: int) -> None:
    row = torch.full((1, vocab), -torch.inf)
    row[0, [3, 17]] = 0.0
    numbers = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    ids, logprobs = draw(row.expand(2, -1), numbers, Sampling())
    assert ids.tolist() == [3, 17] and logprobs.exp().tolist() == pytest.approx([0.5, 0.5])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_bias_and_penalties_are_openais_formula_row_by_row(data: Any) -> None:
    token, amount = st.integers(0, 29), st.floats(-2, 2, width=16)
    drawn = data.draw(st.lists(st.lists(token, max_size=8), min_size=1, max_size=4))
    bias = data.draw(st.dictionaries(token, st.floats(-100, 100, width=16), max_size=4))
    sampling = Sampling(
        frequency_penalty=data.draw(amount), presence_penalty=data.draw(amount), logit_bias=tuple(bias.items())
    )
    rows = logits(len(drawn), 30)
    before, expected = rows.clone(), rows.double()
    for row, tokens in enumerate(drawn):
        for each in range(30):
            count = tokens.count(each)
            expected[row, each] += bias.get(each, 0.0)
            expected[row, each] -= count * sampling.frequency_penalty + (count > 0) * sampling.presence_penalty
    assert torch.allclose(weigh(rows, sampling, drawn).double(), expected, atol=1e-4)
    assert torch.equal(rows, before), "the logits themselves are what log-probabilities are of"


def test_who_asks_for_neither_pays_nothing() -> None:
    rows = logits(2, 30)
    assert weigh(rows, Sampling(temperature=0.5, top_k=3), []) is rows


def test_a_biased_draw_has_the_models_own_logprob() -> None:
    row = logits(1, 30)
    sampling = Sampling(logit_bias=((7, 100.0),))
    ids, logprobs = draw(row, torch.tensor([0.5], dtype=torch.float64), sampling, weigh(row, sampling, [[]]))
    assert ids.tolist() == [7] and logprobs.item() == pytest.approx(row.log_softmax(-1)[0, 7].item(), abs=1e-5)


def test_best_tokens_come_in_order_with_their_logprobs() -> None:
    rows = logits(2, 30)
    ids, logprobs = best(rows, 4)
    assert torch.equal(ids, rows.argsort(-1, descending=True)[:, :4])
    assert torch.allclose(logprobs, rows.log_softmax(-1).gather(-1, ids))
    assert best(rows, 99)[0].shape == (2, 30)
