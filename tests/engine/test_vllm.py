"""The vLLM engine: its arguments against vLLM's signatures, and all of it where vLLM is installed.

Without vLLM the names are checked against those recorded in `vllm_signatures.json` (from the source of the version
named there).
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.interface import Sampling, Usage
from engine.resubmit import Request
from engine.vllm import VllmEngine, end_ids_of, engine_arguments, read, sampling_arguments

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")

REQUEST = Request(ids=[5, 6, 7, 8], prompt=3, seed=11, limit=20)
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.9, logprobs=2)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    recorded: dict[str, Any] = json.loads((Path(__file__).parent / "vllm_signatures.json").read_text())
    if not INSTALLED:
        return recorded
    from vllm import LLM, EngineArgs, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    return {
        "SamplingParams": parameters(SamplingParams),
        "EngineArgs": parameters(EngineArgs),
        "LLM.generate": parameters(LLM.generate),
        "RequestOutput": parameters(RequestOutput),
        "CompletionOutput": parameters(CompletionOutput),
        "Logprob": parameters(Logprob),
        "TokensPrompt": list(TokensPrompt.__annotations__),
    }


def test_every_argument_that_is_passed_exists_under_that_name(names: dict[str, list[str]]) -> None:
    weighed = replace(SAMPLING, frequency_penalty=0.5, presence_penalty=-1.0, logit_bias=((3, 2.0),))
    sampling = sampling_arguments(REQUEST, weighed, frozenset({2}), [])
    asked = {"frequency_penalty": 0.5, "presence_penalty": -1.0, "logit_bias": {3: 2.0}}
    assert sampling == sampling_arguments(REQUEST, SAMPLING, frozenset({2}), []) | asked
    assert sampling.keys() <= set(names["SamplingParams"])
    # vllm.LLM hands what it does not name itself to EngineArgs.
    assert engine_arguments(Path("m"), {"max_model_len": 512}).keys() <= set(names["EngineArgs"])
    assert {"prompts", "sampling_params", "use_tqdm"} <= set(names["LLM.generate"])
    assert "prompt_token_ids" in names["TokensPrompt"]
    assert {"outputs", "num_cached_tokens"} <= set(names["RequestOutput"])
    assert {"token_ids", "logprobs"} <= set(names["CompletionOutput"]) and "logprob" in names["Logprob"]


def test_sampling_becomes_vllms_arguments() -> None:
    made = sampling_arguments(REQUEST, SAMPLING, frozenset({2, 0}), [[9, 4], [7]])
    assert made == {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.0,
        "seed": 11,
        "max_tokens": 20,
        "logprobs": 2,
        "stop_token_ids": [0, 2, 4, 7],
        "ignore_eos": True,
        "detokenize": False,
    }


def test_what_vllm_would_compute_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="vLLM applies min-p first"):
        sampling_arguments(REQUEST, Sampling(top_p=0.9, min_p=0.1), frozenset(), [])
    with pytest.raises(ValueError, match=r"enable_prefix_caching of vllm\.LLM cannot be chosen"):
        engine_arguments(Path("m"), {"enable_prefix_caching": False})


def test_an_output_is_read_with_the_drawn_tokens_logprob_and_the_best_ones() -> None:
    class Object:
        def __init__(self, **fields: Any) -> None:
            self.__dict__ |= fields

    row = {30: Object(logprob=-4.0), 31: Object(logprob=-0.5), 32: Object(logprob=-1.5)}
    output = Object(outputs=[Object(token_ids=[30], logprobs=[row])], num_cached_tokens=2)
    read_back = read(output, REQUEST, 2)
    assert (read_back.ids, read_back.logprobs, read_back.top) == ([30], [-4.0], [[(31, -0.5), (32, -1.5)]])
    # Of 4 tokens 2 were cached: the last of the prompt and the one drawn before ran again.
    assert read_back.usage == Usage(prompt=1, generated=1, fed=1)


def test_end_tokens_are_read_from_the_folder(tiny_model: Path) -> None:
    assert end_ids_of(tiny_model) == {0, 2}


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_without_vllm_the_error_says_what_to_install(tiny_model: Path) -> None:
    with pytest.raises(ImportError, match="pip install vllm"):
        VllmEngine(tiny_model)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama with heads of 32, the smallest that vLLM's CPU attention takes; context 256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("vllm")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": 2, "initializer_range": 0.2}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, **shape, **heads)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield VllmEngine(model, dtype="float32", enforce_eager=True, block_size=32)


@needs_vllm
def test_greedy_tokens_and_logprobs_are_those_of_the_torch_engine(engine: VllmEngine, model: Path) -> None:
    from engine.torch import TorchEngine

    prompts = [[0, *range(20, 120)], [0, 9, 9], [400]]
    [ours, theirs] = [
        each.step(each.open(prompts, [0] * 3), Sampling(temperature=0, logprobs=2), 30)
        for each in (engine, TorchEngine(model, device="cpu"))
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.ids, one.finish) == (other.ids, other.finish)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert [[token for token, _ in row] for row in one.top] == [[token for token, _ in row] for row in other.top]


@needs_vllm
def test_stops_of_several_tokens_seeds_forks_and_the_cache(engine: VllmEngine) -> None:
    prompt = [0, *range(20, 120)]
    [whole] = engine.step(engine.open([prompt], [0]), GREEDY, 30)
    stop = whole.ids[9:11]
    before = engine.usage()
    [cut] = engine.step(engine.open([prompt], [0]), GREEDY, 30, [stop, [stop[1], 511]])
    assert cut.finish == "stop" and cut.ids == whole.ids[: _end_of(whole.ids, stop)]
    spent = engine.usage() - before
    assert spent.generated == len(cut.ids) and 0 < spent.prompt <= 32  # three blocks of 32 were cached

    def run() -> list[list[int]]:
        seqs = engine.open([prompt] * 2, [1, 2])
        engine.step(seqs, Sampling(), 3)
        forks = engine.fork(seqs[0], [1, 7])
        return [out.ids for out in engine.step([seqs[0], *forks], Sampling(), 8)]

    parent, same, other = run()
    assert parent == same != other and run() == [parent, same, other]


def _end_of(ids: list[int], stop: list[int]) -> int:
    return next(i for i in range(len(stop), len(ids) + 1) if ids[i - len(stop) : i] == stop)
