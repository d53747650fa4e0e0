"""The llama.cpp engine keeps the interface's rules, drives the real server, and agrees with torch where it can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.interface import Engine, Sampling, Usage
from engine.llamacpp import LlamaCppEngine
from engine.llamaserver import LlamaError
from engine.llamaslots import common_prefix, place, shortest
from engine.torch import TorchEngine
from export.gguf import write_gguf
from tests.export.models import make_model

GREEDY = Sampling(temperature=0)
PROMPT = [0, *range(20, 120)]


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model whose distributions are peaked; its context is 512."""
    return make_model(tiny_tokenizer, tmp_path_factory.mktemp("llama"), scale=0.2)


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model-f32.gguf"
    write_gguf(folder, path, "f32", {"name": "t"})
    return path


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(gguf, slots=4, exact=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def torch_engine(folder: Path) -> TorchEngine:
    return TorchEngine(folder, device="cpu")


def test_greedy_tokens_and_logprobs_are_those_of_the_torch_engine(
    llama: LlamaCppEngine, torch_engine: TorchEngine
) -> None:
    prompts = [PROMPT, PROMPT[:40], [0, 7, 7, 300], [0]]
    stop = [[37]]
    results = []
    for engine in (llama, torch_engine):
        seqs = engine.open(prompts, [0] * 4)
        results.append(engine.step(seqs, Sampling(temperature=0, logprobs=3), 40, stop))
        engine.close(seqs)
    for ours, theirs in zip(*results, strict=True):
        assert (ours.ids, ours.finish) == (theirs.ids, theirs.finish)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
        assert [[token for token, _ in row] for row in ours.top] == [[token for token, _ in row] for row in theirs.top]
    assert llama.end_ids == torch_engine.end_ids and llama.context == torch_engine.context == 512


def test_a_bias_draws_what_the_torch_engine_draws_and_penalties_are_refused(
    llama: LlamaCppEngine, torch_engine: TorchEngine
) -> None:
    biased = Sampling(temperature=0, logit_bias=((37, -100.0), (50, 1.5)))
    drawn = []
    for engine in (llama, torch_engine):
        [out] = engine.step(engine.open([PROMPT], [0]), biased, 24)
        drawn.append((out.ids, [round(logprob, 2) for logprob in out.logprobs]))
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="sends those again as a prompt"):
        llama.step(llama.open([PROMPT], [0]), Sampling(presence_penalty=0.5), 4)


def test_the_same_calls_draw_the_same_tokens_in_another_engine_and_seeds_differ(gguf: Path) -> None:
    def run() -> list[list[int]]:
        with LlamaCppEngine(gguf, slots=1, context=256) as engine:
            seqs = engine.open([PROMPT] * 3, [1, 2, 1])
            first = [out.ids for out in engine.step(seqs, Sampling(), 12)]
            return first + [out.ids for out in engine.step(engine.fork(seqs[0], [1, 5]), Sampling(), 12)]

    one, other = run(), run()
    assert one == other
    assert one[0] == one[2] != one[1] and one[3] != one[4]


def test_a_fork_draws_what_its_parent_would(llama: LlamaCppEngine) -> None:
    [seq] = llama.open([PROMPT], [3])
    [start] = llama.step([seq], Sampling(), 4)
    forks = llama.fork(seq, [3, 4])
    parent, same, other = (out.ids for out in llama.step([seq, *forks], Sampling(top_k=200), 10))
    assert parent == same != other
    assert seq.ids == forks[0].ids == PROMPT + start.ids + parent


def test_a_stop_sequence_ends_where_its_ids_do_with_nothing_drawn_too_much(llama: LlamaCppEngine) -> None:
    tokens = _greedy(llama, 30)
    plain = [token for token in tokens if _is_text(llama, token)]
    stop = [plain[len(plain) // 2]]
    before = llama.usage()
    seqs = llama.open([PROMPT], [0])
    [out] = llama.step(seqs, GREEDY, 60, [stop])
    assert out.finish == "stop" and out.ids == tokens[: tokens.index(stop[0]) + 1]
    assert (llama.usage() - before).generated == len(out.ids) == len(out.logprobs)


def test_a_stop_whose_text_comes_in_another_token_does_not_stop(llama: LlamaCppEngine) -> None:
    """The server stops at the string; the engine goes on, with the same greedy tokens."""
    tokens = _greedy(llama, 30)
    letters = [_text(llama, token)[-1] for token in tokens if _is_text(llama, token) and len(_text(llama, token)) > 1]
    ids = [llama._server.request("/tokenize", {"content": letter})["tokens"] for letter in letters]
    letter = next(each for each in ids if len(each) == 1 and each[0] not in tokens)
    [out] = llama.step(llama.open([PROMPT], [0]), GREEDY, 30, [letter])
    assert out.ids == tokens and len(out.logprobs) == 30


def test_a_stop_that_is_half_a_character_cuts_exactly_and_counts_the_overshoot(llama: LlamaCppEngine) -> None:
    tokens = _greedy(llama, 60)
    index, half = next((i, t) for i, t in enumerate(tokens) if not _is_text(llama, t) and t not in tokens[:i])
    before = llama.usage()
    [out] = llama.step(llama.open([PROMPT], [0]), GREEDY, 60, [[half]])
    assert out.finish == "stop" and out.ids == tokens[: index + 1]
    assert (llama.usage() - before).generated == -(-len(out.ids) // 16) * 16


def test_a_shared_prefix_runs_through_the_model_once(gguf: Path, llama: LlamaCppEngine) -> None:
    prompt = next(prompt for n in range(101, 60, -1) if _all_text(llama, prompt := PROMPT[:n], 2))
    with LlamaCppEngine(gguf, slots=4, context=256) as engine:
        seqs = engine.open([prompt] * 4, range(4))
        engine.step(seqs, GREEDY, 1)
        # Once whole; then the last token of the prompt again on each slot, for its logits.
        assert engine.usage() == Usage(prompt=len(prompt) + 4, generated=4, fed=0)
        before = engine.usage()
        engine.step(engine.fork(seqs[0], range(4)), GREEDY, 1)
        assert engine.usage() - before == Usage(prompt=0, generated=4, fed=4)


def test_more_sequences_than_slots_take_turns(llama: LlamaCppEngine) -> None:
    prompts = [[0, 50 + i] for i in range(9)]
    limits = list(range(1, 10))
    outs = llama.step(llama.open(prompts, range(9)), Sampling(min_p=0.5), limits)
    assert all(len(out.ids) <= limit for out, limit in zip(outs, limits, strict=True))
    for prompt, limit, out in zip(prompts, limits, outs, strict=True):
        seed = prompts.index(prompt)
        [alone] = llama.step(llama.open([prompt], [seed]), Sampling(min_p=0.5), limit)
        assert alone.ids == out.ids


def test_the_context_ends_a_sequence_and_a_closed_one_is_refused(gguf: Path) -> None:
    with LlamaCppEngine(gguf, slots=1, context=40) as engine:
        [seq] = engine.open([[0, 5, 6]], [0])
        ends = engine.end_ids
        [out] = engine.step([seq], Sampling(), 100)
        while out.finish == "eos":  # an untrained model may end early
            [out] = engine.step([seq], Sampling(), 100)
        assert out.finish == "context" and len(seq.ids) == 40
        assert engine.step([seq], GREEDY, 5)[0].ids == [] and ends == {0, 2}
        engine.close([seq])
        with pytest.raises(ValueError, match="was closed"):
            engine.step([seq], GREEDY, 1)
        with pytest.raises(ValueError, match="was closed"):
            engine.close([seq])
        with pytest.raises(ValueError, match="40 positions"):
            engine.open([[0] * 40], [0])
        with pytest.raises(ValueError, match="outside the vocabulary of 512"):
            engine.open([[0, 512]], [0])


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(LlamaError, match=r"m\.gguf"):
        LlamaCppEngine(tmp_path / "m.gguf")


def test_prompts_go_to_the_slots_that_hold_most_of_them() -> None:
    import numpy as np

    cached = [np.array(ids) for ids in ([1, 2, 3, 4], [], [1, 2, 9])]
    prompts = [np.array([1, 2, 9, 9]), np.array([1, 2, 3]), np.array([7])]
    assert place(prompts, cached) == {0: 2, 1: 0, 2: 1}
    assert place(prompts, cached[:1]) == {1: 0}
    assert set(shortest(["\n\n", ".\n\n", "\n\n", "", "x"])) == {"\n\n", "", "x"}
    assert common_prefix(cached[0], cached[2]) == 2 and common_prefix(cached[0], cached[0]) == 4


def _greedy(engine: Engine, tokens: int) -> list[int]:
    """Of the model with end tokens passed over."""
    [seq] = engine.open([PROMPT], [0])
    while len(seq.ids) < len(PROMPT) + tokens:
        engine.step([seq], GREEDY, len(PROMPT) + tokens - len(seq.ids))
    ids: list[int] = seq.ids[len(PROMPT) :]
    assert not set(ids) & engine.end_ids, "choose another prompt: greedy decoding ends"
    return ids


def _all_text(engine: LlamaCppEngine, prompt: list[int], tokens: int) -> bool:
    [out] = engine.step(engine.open([prompt], [0]), GREEDY, tokens)
    return len(out.ids) == tokens and all(_is_text(engine, token) for token in out.ids)


def _text(engine: LlamaCppEngine, token: int) -> str:
    text: str = engine._server.request("/detokenize", {"tokens": [token]})["content"]
    return text


def _is_text(engine: LlamaCppEngine, token: int) -> bool:
    return "\ufffd" not in _text(engine, token)
