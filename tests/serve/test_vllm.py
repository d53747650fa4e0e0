"""The vLLM backend: over a stand-in for vLLM, and the same over vLLM itself where that is installed.

Without vLLM the names of its arguments are checked against those recorded from its source, as for `engine.vllm`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.interface import Sampling
from serve.backend import Delta, Work, load_backend
from serve.settings import Settings
from serve.sizes import folder_size
from serve.vllm import ENVIRONMENT, SPARE, VllmBackend, engine_arguments, prompt_of, request_arguments, schema_of
from tests.serve import fake_vllm
from tests.serve.servers import settings_of

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
GREEDY = Sampling(temperature=0)


def work_of(ids: list[int], **changed: Any) -> Work:
    return replace(Work(ids=tuple(ids), sampling=GREEDY, max_tokens=8, seed=1), **changed)


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of a model with heads of 32, the smallest that vLLM's CPU attention takes, and the tiny tokenizer."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("vllm") / "model"
    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(folder)
    config.update({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.2})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return settings_of(folder, engine="vllm", context=512, kv_tokens=4096, chunk=64, rows=4)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("vLLM", marks=needs_vllm)])
def backend(request: pytest.FixtureRequest, settings: Settings) -> Iterator[VllmBackend]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ENVIRONMENT:
            patch.setenv(name, os.environ.get(name, ENVIRONMENT[name]))
        if request.param == "stand-in":
            fake_vllm.install(patch)
        made = load_backend(settings)
        assert isinstance(made, VllmBackend)
        yield made
        made.close()


def run(backend: VllmBackend, *works: Work) -> list[Delta]:
    """What each piece of work came to, as one delta."""
    handles = [backend.submit(work) for work in works]
    found: dict[int, list[Delta]] = {handle: [] for handle in handles}
    while backend.busy:
        for delta in backend.turn():
            found[delta.handle].append(delta)
    assert all([one.last for one in found[handle]].count(True) == found[handle][-1].last == 1 for handle in handles)
    return [
        Delta(
            handle,
            ids=[token for one in found[handle] for token in one.ids],
            logprobs=[value for one in found[handle] for value in one.logprobs],
            top=[row for one in found[handle] for row in one.top],
            finish=found[handle][-1].finish,
            cached=next(one.cached for one in found[handle] if one.cached is not None),
        )
        for handle in handles
    ]


def test_every_name_exists_in_vllm(settings: Settings) -> None:
    names: dict[str, list[str]] = json.loads(
        (Path(__file__).parents[1] / "engine" / "vllm_signatures.json").read_text()
    )
    assert engine_arguments(settings).keys() | {"structured_outputs_config"} <= set(names["EngineArgs"])
    arguments = request_arguments(work_of([5, 6]), frozenset({2}))
    assert arguments.keys() | {"output_kind", "structured_outputs"} <= set(names["SamplingParams"])
    assert prompt_of(work_of([5, 6], cache=False)).keys() <= {*names["TokensPrompt"], *names["_PromptOptions"]}
    assert "json" in names["StructuredOutputsParams"] and "backend" in names["StructuredOutputsConfig"]
    assert {"request_id", "finished", "outputs", "num_cached_tokens"} <= set(names["RequestOutput"])
    assert {"token_ids", "logprobs", "finish_reason"} <= set(names["CompletionOutput"])
    assert names["LLMEngine.add_request"][:3] == ["request_id", "prompt", "params"]
    methods = {"from_engine_args", "has_unfinished_requests", "add_request", "abort_request", "step"}
    assert methods <= set(names["LLMEngine"])
    assert {"num_gpu_blocks", "block_size"} <= set(names["CacheConfig"]) and "DELTA" in names["RequestOutputKind"]


def test_settings_become_vllms_arguments(settings: Settings) -> None:
    made = engine_arguments(settings)
    assert (made["max_model_len"], made["max_num_seqs"], made["max_num_batched_tokens"]) == (512, 4, 64)
    assert made["kv_cache_memory_bytes"] == (4096 + SPARE) * folder_size(settings.model).cache("float32")
    assert engine_arguments(replace(settings, chunk=2))["max_num_batched_tokens"] == 4
    free = replace(settings, device="cuda", unsettled=("kv_tokens",))
    assert "kv_cache_memory_bytes" not in engine_arguments(free)
    assert "kv_cache_memory_bytes" in engine_arguments(replace(free, unsettled=()))


def test_several_pieces_of_work_run_together_and_are_measured(backend: VllmBackend) -> None:
    before = backend.stats()
    top = Sampling(temperature=0, logprobs=2)
    prompts = [[0, *range(20, 60)], [0, 9, 9], [0, 300]]
    found = run(backend, *(work_of(ids, sampling=top, max_tokens=5 + place) for place, ids in enumerate(prompts)))
    for place, one in enumerate(found):
        assert (one.finish, len(one.ids)) == ("length", 5 + place)
        assert [row[0] for row in one.top] == list(zip(one.ids, one.logprobs, strict=True))
        assert all(len(row) == 2 and row[0][1] >= row[1][1] for row in one.top)
    assert [one.ids for one in found] == [
        run(backend, work_of(ids, max_tokens=5 + place))[0].ids for place, ids in enumerate(prompts)
    ]
    after = backend.stats()
    assert (after.running, after.waiting, after.blocks_used) == (0, 0, 0)
    assert after.generated_tokens - before.generated_tokens == 2 * (5 + 6 + 7)
    ran = after.prompt_tokens + after.cached_tokens - before.prompt_tokens - before.cached_tokens
    assert ran == 2 * sum(len(ids) for ids in prompts)


def test_a_prefix_is_found_again_but_not_by_who_opts_out(backend: VllmBackend) -> None:
    ids = [0, *range(100, 300)]
    [private] = run(backend, work_of(ids, cache=False))
    [first] = run(backend, work_of(ids))  # nothing was left for it
    [second] = run(backend, work_of([*ids, 7]))
    [again] = run(backend, work_of(ids, cache=False))
    assert (private.cached, first.cached, again.cached) == (0, 0, 0)
    assert second.cached is not None and second.cached >= 64
    assert private.ids == first.ids == again.ids


def test_cancelled_work_says_nothing_more(backend: VllmBackend) -> None:
    handle = backend.submit(work_of([0, 30], max_tokens=400))
    while not backend.turn():
        pass
    assert backend.stats().running == 1
    backend.cancel(handle)
    assert not backend.busy and backend.turn() == [] and backend.stats().running == 0
    backend.cancel(handle)  # a finished one is no error
    assert run(backend, work_of([0, 30]))[0].finish == "length"


def test_what_cannot_be_run_is_a_sentence(backend: VllmBackend) -> None:
    for work, sentence in (
        (work_of([0, 5], search={"method": "dvts"}), "search needs the torch engine"),
        (work_of([0, 5], schema={"type": "gold"}), "schema"),
        (work_of([0, 5], sampling=Sampling(top_p=0.5, min_p=0.5)), "min-p first"),
        (work_of([5] * 600), "vLLM refused the request"),
    ):
        with pytest.raises(ValueError, match=sentence):
            backend.submit(work)
    assert not backend.busy


def test_an_end_token_and_a_schema_end_an_answer(backend: VllmBackend, request: pytest.FixtureRequest) -> None:
    [answer] = run(backend, work_of([0, 40], schema=SCHEMA, max_tokens=60, sampling=Sampling()))
    assert answer.finish == "eos" and answer.ids[-1] in (0, 2)
    if "stand-in" not in request.node.name:
        from transformers import AutoTokenizer

        text = AutoTokenizer.from_pretrained(backend.settings.model).decode(answer.ids[:-1])
        assert json.loads(text)["a"] in (1, 2)
    assert schema_of(SCHEMA)["x-guidance"] == {"whitespace_pattern": r"[ \n]?"}


def test_the_cache_that_vllm_made_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    left = load_backend(replace(settings, unsettled=("kv_tokens",))).settings
    assert left.kv_tokens == 64 * fake_vllm.BLOCK and "64 blocks" in left.reasons["kv_tokens"]
    assert left.unsettled == ("kv_tokens",)  # for the next worker as well
    assert load_backend(settings).settings == settings
    with pytest.raises(ValueError, match="this vLLM runs on cpu, not on cuda"):
        load_backend(replace(settings, device="cuda"))


def test_without_vllm_the_error_says_what_to_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"does not import here.*--engine torch"):
        load_backend(settings)


@needs_vllm
@pytest.mark.parametrize("backend", ["vLLM"], indirect=True)
def test_greedy_answers_are_those_of_the_torch_engine(backend: VllmBackend, settings: Settings) -> None:
    works = [work_of([0, *range(20, 120)], max_tokens=30), work_of([0, 9, 9], max_tokens=30)]
    ours = run(backend, *works)
    other = load_backend(replace(settings, engine="torch"))
    theirs = run(other, *works)  # type: ignore[arg-type]
    for one, two in zip(ours, theirs, strict=True):
        assert (one.ids, one.finish) == (two.ids, two.finish)
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3)
