"""As much of vLLM as `serve.vllm` uses: it draws the token after the last one, and keeps whole blocks of prompts."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BLOCK, VOCAB = 16, 400


class Refusal(Exception):
    """vLLM's is no ValueError either."""


class Params(SimpleNamespace):
    """`SamplingParams`."""


class Engine:
    """`LLMEngine`. Greedy; a schema is answered by the smallest stop token at once."""

    def __init__(self, arguments: SimpleNamespace) -> None:
        self.arguments = arguments
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=64, block_size=BLOCK))
        self.engine_core = SimpleNamespace(shutdown=self._shut)
        self.closed = False
        self.requests: dict[str, tuple[list[int], Params, int]] = {}
        self._kept: set[tuple[Any, ...]] = set()

    @classmethod
    def from_engine_args(cls, arguments: SimpleNamespace) -> Engine:
        return cls(arguments)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Params) -> str:
        ids = list(prompt["prompt_token_ids"])
        if len(ids) >= self.arguments.max_model_len:
            raise Refusal("the prompt is too long")
        blocks = [(prompt.get("cache_salt"), *ids[:end]) for end in range(BLOCK, len(ids), BLOCK)]
        cached = BLOCK * sum(one in self._kept for one in blocks)
        self._kept.update(blocks)
        self.requests[request_id] = ids, params, cached
        return request_id

    def abort_request(self, request_ids: list[str]) -> None:
        for one in request_ids:
            del self.requests[one]

    def step(self) -> list[Any]:
        return [self._advance(one) for one in list(self.requests)[: self.arguments.max_num_seqs]]

    def _advance(self, name: str) -> Any:
        ids, params, cached = self.requests[name]
        params.drawn = getattr(params, "drawn", 0) + 1
        token = (ids[-1] + 1) % VOCAB if not hasattr(params, "structured_outputs") else params.stop_token_ids[0]
        ids.append(token)
        reason = "stop" if token in params.stop_token_ids else "length" if params.drawn == params.max_tokens else None
        if reason:
            del self.requests[name]
        row = {(token + far) % VOCAB: SimpleNamespace(logprob=-0.5 - far) for far in range(max(1, params.logprobs))}
        new = SimpleNamespace(token_ids=[token], logprobs=[row], finish_reason=reason)
        return SimpleNamespace(request_id=name, outputs=[new], finished=reason is not None, num_cached_tokens=cached)

    def _shut(self) -> None:
        self.closed = True


def install(patch: pytest.MonkeyPatch) -> None:
    """Make it what `import vllm` finds."""
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"LLMEngine": Engine, "EngineArgs": SimpleNamespace, "SamplingParams": Params},
        "vllm.config": {"StructuredOutputsConfig": SimpleNamespace},
        "vllm.exceptions": {"VLLMValidationError": Refusal},
        "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cpu")},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            "StructuredOutputsParams": SimpleNamespace,
        },
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        patch.setitem(sys.modules, name, module)
