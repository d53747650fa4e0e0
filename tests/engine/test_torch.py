"""The torch engine against its own promises and against transformers' `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.interface import Engine, Sampling, StepOut, Usage
from engine.torch import TorchEngine
from tests.engine.models import CONTEXT, NAMES, VOCAB, Counter, make_model, prompts

WARM = Sampling(temperature=1.0)
PENALISED = Sampling(frequency_penalty=0.8, presence_penalty=0.6, logit_bias=((3, 2.0), (5, -100.0)))


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest) -> TorchEngine:
    return TorchEngine(make_model(request.param), end_ids=())


@pytest.fixture(scope="module")
def llama() -> TorchEngine:
    return TorchEngine(make_model(), end_ids=())


def one(engine: Engine, prompt: list[int], seed: int, tokens: int, sampling: Sampling = WARM) -> StepOut:
    """The whole generation in one call, alone in its batch."""
    [out] = engine.step(engine.open([prompt], [seed]), sampling, tokens)
    return out


def test_greedy_tokens_are_those_of_generate(engine: TorchEngine) -> None:
    rows = prompts(3, 11, 7, 11)
    outs = engine.step(engine.open(rows, [0] * 4), Sampling(temperature=0), 20)
    for row, out in zip(rows, outs, strict=True):
        expected = engine.model.generate(torch.tensor([row]), max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert out.ids == expected[0, len(row) :].tolist()


def test_penalties_count_what_was_drawn_in_this_call_or_before_and_not_the_prompt(engine: TorchEngine) -> None:
    [prompt] = prompts(9)
    sampling = Sampling(temperature=0, frequency_penalty=0.5, presence_penalty=0.3, logit_bias=((11, 1.0),))
    expected: list[int] = []
    for _ in range(16):
        logits = engine.model(torch.tensor([prompt + expected])).logits[0, -1].detach().clone()
        logits[11] += 1.0
        for token in set(expected):
            logits[token] -= 0.5 * expected.count(token) + 0.3
        expected.append(int(logits.argmax()))
    [seq] = engine.open([prompt], [0])
    engine.step([seq], sampling, 7)
    [fork] = engine.fork(seq, [0])
    engine.step([seq, fork], sampling, 9)
    assert seq.ids == fork.ids == prompt + expected
    assert expected != one(engine, prompt, 0, 16, Sampling(temperature=0)).ids


def test_logprobs_are_those_of_a_plain_forward_pass_at_temperature_1(engine: TorchEngine) -> None:
    [prompt] = prompts(9)
    [seq] = engine.open([prompt], [5])
    [out] = engine.step([seq], Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, logprobs=3), 12)
    logprobs = engine.model(torch.tensor([seq.ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1).detach()
    assert out.logprobs == pytest.approx(
        [row[token].item() for row, token in zip(logprobs, out.ids, strict=True)], abs=1e-4
    )
    for row, top in zip(logprobs, out.top, strict=True):
        values, ids = row.topk(3)
        assert [token for token, _ in top] == ids.tolist()
        assert [logprob for _, logprob in top] == pytest.approx(values.tolist(), abs=1e-4)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_forked_split_and_batched_decoding_equals_decoding_alone(engine: TorchEngine, data: Any) -> None:
    """A random tree search: sequences of several prompts are forked and stepped by random limits in random groups."""
    starts = prompts(*data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)))
    open_seqs = engine.open(starts, range(len(starts)))
    lengths = {id(seq): len(seq.ids) for seq in open_seqs}
    sampling = data.draw(st.sampled_from([WARM, PENALISED]))
    kept = list(open_seqs)
    for _ in range(data.draw(st.integers(1, 4))):
        group = data.draw(st.lists(st.sampled_from(kept), min_size=1, unique_by=id))
        limits = [data.draw(st.integers(1, 9)) for _ in group]
        engine.step(group, sampling, limits)
        parent = data.draw(st.sampled_from(kept))
        # A fork with its parent's seed must go on as the parent does, with what that has drawn before.
        forks = engine.fork(parent, [parent.seed] * data.draw(st.integers(0, 3)))
        lengths |= {id(fork): lengths[id(parent)] for fork in forks}
        kept += forks
    for seq in kept:
        start = lengths[id(seq)]
        if len(seq.ids) > start:
            assert seq.ids[start:] == one(engine, seq.ids[:start], seq.seed, len(seq.ids) - start, sampling).ids
    engine.close(kept)


def test_forks_with_seeds_of_their_own_draw_what_unforked_sequences_with_those_seeds_draw(engine: TorchEngine) -> None:
    [prompt] = prompts(10)
    [seq] = engine.open([prompt], [1])
    engine.step([seq], WARM, 5)
    forks = engine.fork(seq, range(6))
    outs = engine.step(forks, WARM, 12)
    assert len({tuple(out.ids) for out in outs}) == 6
    assert [out.ids for out in outs] == [one(engine, seq.ids, seed, 12).ids for seed in range(6)]
    assert seq.ids == prompt + one(engine, prompt, 1, 5).ids


def test_limits_of_rows_and_positions_split_a_call_and_change_no_token(engine: TorchEngine) -> None:
    rows = prompts(30, 3, 30, 12, 5, 5)
    whole = engine.step(engine.open(rows, range(6)), WARM, [3, 20, 9, 14, 1, 20])
    for limits in ({"rows": 2}, {"positions": 260}, {"chunk": 7}):
        small = TorchEngine(engine.model, end_ids=(), **limits)  # type: ignore[arg-type]
        outs = small.step(small.open(rows, range(6)), WARM, [3, 20, 9, 14, 1, 20])
        assert [out.ids for out in outs] == [out.ids for out in whole]
    with pytest.raises(MemoryError, match="260 are allowed"):
        TorchEngine(engine.model, positions=260).tree.split([None], [250])


@pytest.mark.parametrize("name", NAMES)
def test_usage_counts_the_tokens_that_the_model_sees(name: str) -> None:
    model = make_model(name)
    engine = TorchEngine(model, end_ids=(), chunk=16)
    counter = Counter(model)
    rows = prompts(30, 8, 30, 21)
    seqs = engine.open([*rows, rows[0], rows[0]], range(6))
    assert engine.usage() == Usage(prompt=89) and counter.tokens == 89
    forks = engine.fork(seqs[0], range(10, 14))
    assert counter.tokens == 89
    outs = engine.step([*seqs, *forks], WARM, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert engine.usage() == Usage(prompt=89, generated=55, fed=45) and counter.tokens == 89 + 45
    engine.step(forks, WARM, 2)
    assert engine.usage() == Usage(prompt=89, generated=63, fed=53) and counter.tokens == 89 + 53
    assert sum(len(out.ids) for out in outs) == 55


def test_finished_rows_leave_the_batch_at_once() -> None:
    model = make_model()
    engine = TorchEngine(model, end_ids=())
    seqs = engine.open(prompts(5) * 8, range(8))
    sizes = []
    forward = model.forward
    model.forward = lambda **kwargs: sizes.append(len(kwargs["input_ids"])) or forward(**kwargs)
    engine.step(seqs, WARM, [1, 2, 3, 4, 5, 6, 7, 8])
    assert sizes == [7, 6, 5, 4, 3, 2, 1]


def test_stop_sequences_end_a_row_only_where_all_of_them_is_new(llama: TorchEngine) -> None:
    [prompt] = prompts(6)
    ids = one(llama, prompt, 3, 12).ids
    stop = ids[4:7]
    first = next(i for i in range(3, 13) if ids[i - 3 : i] == stop)
    seq, cut = llama.open([prompt] * 2, [3, 3])
    [out] = llama.step([seq], WARM, 12, [[VOCAB - 1] * 9, stop])
    assert (out.ids, out.finish) == (ids[:first], "stop")
    llama.step([cut], WARM, 5)
    [out] = llama.step([cut], WARM, 7, [stop])
    assert out.ids[:2] == ids[5:7] and len(out.ids) > 2


def test_end_tokens_come_from_the_generation_config_and_end_a_row(tmp_path: Path) -> None:
    model = make_model()
    [prompt] = prompts(6)
    ids = one(TorchEngine(model, end_ids=()), prompt, 3, 12).ids
    model.generation_config.eos_token_id = [ids[5], 1]
    model.save_pretrained(tmp_path)
    engine = TorchEngine(tmp_path)
    assert engine.end_ids == {ids[5], 1}
    out = one(engine, prompt, 3, 12)
    assert out.finish == "eos" and out.ids == ids[: min(ids.index(ids[5]), 5) + 1]


def test_the_context_ends_a_row_and_a_full_one_gets_nothing(engine: TorchEngine) -> None:
    rows = prompts(CONTEXT - 1, CONTEXT - 4, 5)
    seqs = engine.open(rows, range(3))
    outs = engine.step(seqs, WARM, 6)
    assert [(len(out.ids), out.finish) for out in outs] == [(1, "context"), (4, "context"), (6, "length")]
    before = engine.usage()
    [out] = engine.step(seqs[:1], WARM, 6)
    assert (out.ids, out.finish) == ([], "context") and engine.usage() == before


def test_a_call_that_fails_leaves_its_sequences_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(make_model(), end_ids=())
    [prompt] = prompts(6)
    [seq] = engine.open([prompt], [2])
    expected = one(engine, prompt, 2, 8).ids
    engine.step([seq], WARM, 2)
    calls = []
    run = engine.tree.run

    def fail_third(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(engine.tree, "run", fail_third)
    with pytest.raises(KeyboardInterrupt):
        engine.step([seq], WARM, 6)
    assert seq.ids == prompt + expected[:2]
    [out] = engine.step([seq], WARM, 6)
    assert out.ids == expected[2:]


def test_logits_that_are_nan_are_an_error_and_no_token() -> None:
    model = make_model()
    engine = TorchEngine(model, end_ids=())
    [seq] = engine.open(prompts(6), [2])
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="nan after 7 tokens"):
        engine.step([seq], WARM, 6)


def test_bad_calls_are_refused_with_the_value_and_what_to_do(llama: TorchEngine) -> None:
    cases: list[tuple[list[int], str]] = [
        ([], "prompt 0 is empty"),
        ([2] * CONTEXT, f"{CONTEXT} tokens .* cut the prompt to {CONTEXT - 1}"),
        ([VOCAB], f"id {VOCAB}, outside the vocabulary of {VOCAB}"),
        ([3, -1], "id -1"),
    ]
    for prompt, message in cases:
        with pytest.raises(ValueError, match=message):
            llama.open([prompt], [0])
    with pytest.raises(ValueError, match="1 prompts but 2 seeds"):
        llama.open([[2]], [0, 1])
    [seq] = llama.open([[2, 3]], [0])
    with pytest.raises(ValueError, match="twice in one call"):
        llama.step([seq, seq], WARM, 1)
    with pytest.raises(ValueError, match="min_p is 2"):
        llama.step([seq], Sampling(min_p=2), 1)
    with pytest.raises(ValueError, match="frequency_penalty is nan; it must be finite"):
        llama.step([seq], Sampling(frequency_penalty=float("nan")), 1)
    with pytest.raises(ValueError, match=f"logit_bias holds id {VOCAB}, outside the vocabulary"):
        llama.step([seq], Sampling(logit_bias=((VOCAB, 1.0),)), 1)
    with pytest.raises(ValueError, match="logit_bias names id 3 twice"):
        llama.step([seq], Sampling(logit_bias=((3, 1.0), (3, 2.0))), 1)
    llama.close([seq])
    for call in (lambda: llama.step([seq], WARM, 1), lambda: llama.fork(seq, [1]), lambda: llama.close([seq])):
        with pytest.raises(ValueError, match="was closed"):
            call()
    assert llama.open([], []) == [] and llama.step([], WARM, 1) == []
