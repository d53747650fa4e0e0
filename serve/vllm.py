"""The backend for GPUs where vLLM is installed: its `LLMEngine` in the worker's own process, one step for each turn.

vLLM's scheduler and prefix cache take the place of ours; arguments are those of `engine.vllm` wherever they mean the
same. Schemas go to llguidance here too, with the same white space (`engine.grammar`). A request that opts out of the
cache gets a salt of its own: no other one's prefix is found for it, and what it leaves can be found by nobody.

Names are of vLLM 0.32 and 0.33.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any

from engine.requests import Stats
from engine.resubmit import Request
from engine.vllm import OURS, end_ids_of, sampling_arguments
from serve.backend import Delta, Work
from serve.settings import Settings
from serve.sizes import folder_size

ENVIRONMENT = {
    # In this process: it ends with it, and `step` returns when a step is done.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Of vLLM; a variable that is set already stays."""
SPARE = 256
"""Tokens of cache beside those wished for: vLLM counts whole blocks (16 tokens on CUDA, 128 on a CPU) and keeps one."""
_FINISH = {"stop": "eos", "length": "length"}


@dataclass
class _Running:
    work: Work
    drawn: int = 0


class VllmBackend:
    """`serve.backend.Backend`. Raises ValueError where vLLM is missing or built for another device."""

    def __init__(self, settings: Settings) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.config import StructuredOutputsConfig
            from vllm.exceptions import VLLMValidationError
            from vllm.platforms import current_platform
            from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        except ImportError as error:
            raise ValueError(f"engine vllm: vLLM does not import here ({error}); take --engine torch") from error
        if current_platform.device_type != settings.device:
            raise ValueError(
                f"this vLLM runs on {current_platform.device_type}, not on {settings.device}; take --engine torch"
            )
        self._refusal, self._params, self._kind = VLLMValidationError, vllm.SamplingParams, RequestOutputKind.DELTA
        self._structured = StructuredOutputsParams
        grammars = StructuredOutputsConfig(backend="guidance")
        arguments = vllm.EngineArgs(**engine_arguments(settings), structured_outputs_config=grammars)
        self._engine = vllm.LLMEngine.from_engine_args(arguments)
        cache = self._engine.vllm_config.cache_config
        self._blocks, self._block = int(cache.num_gpu_blocks), int(cache.block_size)
        self.settings = self._settled(settings)
        self._ends = end_ids_of(settings.model)
        self._work: dict[int, _Running] = {}
        self._handles = 0
        self._figures = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)

    @property
    def context(self) -> int:
        return self.settings.context

    @property
    def busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    @property
    def files(self) -> list[int]:
        return []

    def submit(self, work: Work) -> int:
        if work.search is not None:
            raise ValueError("search needs the torch engine: start the server with --engine torch")
        arguments = request_arguments(work, self._ends)
        if work.schema is not None:
            arguments["structured_outputs"] = self._structured(json=schema_of(work.schema))
        self._handles += 1
        try:
            params = self._params(**arguments, output_kind=self._kind)
            self._engine.add_request(str(self._handles), prompt_of(work), params)
        except self._refusal as error:  # no ValueError in every version
            raise ValueError(f"vLLM refused the request: {error}") from error
        self._work[self._handles] = _Running(work)
        return self._handles

    def cancel(self, handle: int) -> None:
        if self._work.pop(handle, None) is not None:
            self._engine.abort_request([str(handle)])

    def turn(self) -> list[Delta]:
        if not self.busy:
            return []
        return [self._delta(output) for output in self._engine.step() if int(output.request_id) in self._work]

    def stats(self) -> Stats:
        """`blocks_used` are those of running requests: vLLM does not tell which others it keeps, nor what it evicts."""
        running = [one for one in self._work.values() if one.drawn]
        return Stats(
            running=len(running),
            waiting=len(self._work) - len(running),
            blocks=self._blocks,
            blocks_used=sum(-(-(len(one.work.ids) + one.drawn) // self._block) for one in running),
            block_tokens=self._block,
            evicted_blocks=0,
            **self._figures,
        )

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def _delta(self, output: Any) -> Delta:
        handle, [new] = int(output.request_id), output.outputs
        running = self._work[handle]
        ids, rows = [int(token) for token in new.token_ids], [dict(row) for row in new.logprobs or ()]
        cached = None if running.drawn else int(output.num_cached_tokens or 0)
        running.drawn += len(ids)
        self._count(len(running.work.ids), cached, len(ids))
        finish, error = None, None
        if output.finished:
            del self._work[handle]
            finish = _FINISH.get(new.finish_reason)
            error = None if finish else f"vLLM ended the answer before its end: {new.finish_reason}"
        return Delta(
            handle,
            ids,
            [float(row[token].logprob) for row, token in zip(rows, ids, strict=True)],
            [best(row, running.work.sampling.logprobs) for row in rows],
            finish,
            cached,
            error=error,
        )

    def _count(self, prompt: int, cached: int | None, drawn: int) -> None:
        self._figures["generated_tokens"] += drawn
        if cached is not None:
            self._figures["prompt_tokens"] += prompt - cached
            self._figures["cached_tokens"] += cached

    def _settled(self, settings: Settings) -> Settings:
        """With the cache that vLLM made. It stays unsettled: a worker that is started again lets vLLM choose anew."""
        tokens = self._blocks * self._block
        if "kv_tokens" not in settings.unsettled:
            return settings
        why = f"{self._blocks:,} blocks: vLLM's own share of the GPU's memory (gpu_memory_utilization)"
        return replace(settings, kv_tokens=tokens, reasons=settings.reasons | {"kv_tokens": why})


def engine_arguments(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of `vllm.EngineArgs`, without those that are vLLM's own classes.

    The cache is left to vLLM unless the user fixed its size, or on a CPU.
    """
    arguments = {
        **OURS,
        "skip_tokenizer_init": False,  # grammars need it
        "model": str(settings.model),
        "dtype": settings.dtype,
        "max_model_len": settings.context,
        "max_num_seqs": settings.rows,
        "max_num_batched_tokens": max(settings.chunk, settings.rows),  # one token of every row at least
        "enable_chunked_prefill": True,
        "disable_log_stats": True,
    }
    if "kv_tokens" not in settings.unsettled or settings.device == "cpu":
        each = folder_size(settings.model).cache(settings.dtype)
        arguments["kv_cache_memory_bytes"] = (settings.kv_tokens + SPARE) * each
    return arguments


def request_arguments(work: Work, ends: frozenset[int]) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams`, without those that are vLLM's own classes.

    Raises ValueError as `engine.vllm.sampling_arguments` does.
    """
    ids = list(work.ids)
    return sampling_arguments(Request(ids, len(ids), work.seed, work.max_tokens), work.sampling, ends, [])


def prompt_of(work: Work) -> dict[str, Any]:
    """A `vllm.inputs.TokensPrompt`."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(work.ids)}
    return prompt if work.cache else prompt | {"cache_salt": token_hex(16)}


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    """With the white space of `engine.grammar`. Raises ValueError for a schema that is not supported."""
    from engine.grammar import BLANK, check_schema

    check_schema(schema)
    return schema | {"x-guidance": {"whitespace_pattern": BLANK}}


def best(row: dict[int, Any], count: int) -> list[tuple[int, float]]:
    """The `count` most probable tokens of a position, best first; vLLM adds the drawn one."""
    ranked = sorted(row.items(), key=lambda item: -item[1].logprob)[:count]
    return [(int(token), float(entry.logprob)) for token, entry in ranked]
