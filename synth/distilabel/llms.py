"""Which LLM answers: one block `llm: {type: ..., ...}` for the teacher, a model, vLLM, a GGUF, or a server."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilabel.pipeline.ray import RayPipeline

from synth.distilabel.asked import AskedLLM
from synth.distilabel.models import GgufLLM, ModelLLM, TeacherLLM, VllmLLM
from synth.distilabel.server import ServerLLM, reach

LLM_CLASSES: dict[str, type[Any]] = {
    "teacher": TeacherLLM,
    "model": ModelLLM,
    "openai": ServerLLM,
    "vllm": VllmLLM,
    "gguf": GgufLLM,
}
_OURS = {
    "seed",
    "batch_size",
    "device",
    "structured_output",
    "cuda_devices",
    "disable_cuda_device_placement",
    "use_magpie_template",
}
SET_BY_ACORN = {
    "teacher": {"problems", "seed", "generation_kwargs"},
    "model": _OURS,
    "openai": {"use_magpie_template"},
    "vllm": _OURS | {"torch_dtype", "device_map", "model_kwargs"},
    "gguf": _OURS | {"torch_dtype", "device_map", "model_kwargs", "tokenizer"},
}
"""Fields of the classes that the stage fills in itself, or that its classes do not use."""


def make_llm(
    arguments: Mapping[str, Any],
    *,
    problems: Path | None,
    model: Path | None,
    seed: int,
    device: str,
    batch_size: int,
    digest: str | None = None,
    cache: Path | None = None,
    cache_bytes: int | None = None,
) -> Any:
    """The LLM that `arguments` (a config's `llm`) asks for; behind `cache`, a file of so many bytes, if there is one.

    `device` may be `"auto"`; `digest` is the model's. Raises ValueError if a model is asked for and there is none,
    ConnectionError if no server answers.
    """
    made = _make(arguments, problems, model, seed, device, batch_size)
    if arguments["type"] == "teacher":
        return made
    # Everything that decides about an answer; a server has no digest, so its address stands for it.
    own = {name: value for name, value in arguments.items() if name not in ("timeout", "max_retries")}
    if arguments["type"] == "openai":
        own["base_url"] = server_address(arguments)
    about = {"llm": own, "weights": digest, "seed": None if arguments["type"] == "openai" else seed}
    return AskedLLM.around(made, json.dumps(about, sort_keys=True), cache, cache_bytes)


def _make(
    arguments: Mapping[str, Any], problems: Path | None, model: Path | None, seed: int, device: str, batch_size: int
) -> Any:
    rest = {key: value for key, value in arguments.items() if key != "type"}
    kind = arguments["type"]
    if kind == "teacher":
        if problems is None:
            raise ValueError("llm.type is 'teacher', whose rules know word problems alone: choose another type here")
        return TeacherLLM(problems=str(problems), seed=seed, **rest)
    if kind == "openai":
        if rest.get("base_url") and not os.environ.get("OPENAI_API_KEY"):
            rest["api_key"] = "none"  # A server of one's own asks for no key, but the client wants one.
        reach(server_address(arguments))
        return ServerLLM(**rest)
    if model is not None:
        rest["model"] = str(model)
    if "model" not in rest:
        raise ValueError(f"llm.type is {kind!r}, but the step has no `model` input: name one under `inputs:`")
    # Before the first fork, so that every shard's process has torch and transformers. Neither may start CUDA here.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import transformers.models.llama.modeling_llama  # noqa: F401

    import engine.torch  # noqa: F401

    return LLM_CLASSES[kind](seed=seed, batch_size=batch_size, device=device, **rest)


def server_address(arguments: Mapping[str, Any]) -> str:
    """Where an `openai` LLM is asked: as the config says, else as the client finds it."""
    return str(arguments.get("base_url") or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")


def ray_arguments() -> set[str]:
    """Arguments of distilabel's RayPipeline that a recipe may give; the others are set by acorn."""
    names = set(inspect.signature(RayPipeline.__init__).parameters)
    return names - {"self", "name", "description", "cache_dir", "enable_metadata"}
