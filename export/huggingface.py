"""Reads a Hugging Face Llama folder: what its config says, and its weights one tensor at a time.

Refused before any work: every architecture but plain Llama, because the GGUF names and the q/k row order below are
Llama's alone. Weights are read lazily (one tensor in memory), so exporting costs about one matrix of RAM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SUPPORTED = "llama"


class ExportError(ValueError):
    """The model folder cannot become a GGUF that llama.cpp computes the same with; the message says why."""


@dataclass(frozen=True)
class LlamaShape:
    """The figures of config.json that llama.cpp needs."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    """Rows of the embedding; at least the tokenizer's entries."""
    context: int
    norm_eps: float
    rope_theta: float
    tied: bool


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ExportError where the file is missing."""
    if not path.is_file():
        raise ExportError(f"{path.name} is missing from the model folder {path.parent}")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def read_shape(model: Path) -> LlamaShape:
    """Shape of the model in folder `model`. Raises ExportError for anything that is not a plain Llama."""
    config = read_json(model / "config.json")
    kind = config.get("model_type")
    if kind != SUPPORTED:
        raise ExportError(f"model_type is {kind!r}; the export supports {SUPPORTED!r} alone (SmolLM2 and Llama models)")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _expect("rope_type", rope_type, "default")
    _expect("hidden_act", config.get("hidden_act", "silu"), "silu")
    _expect("attention_bias", config.get("attention_bias", False), False)
    _expect("mlp_bias", config.get("mlp_bias", False), False)
    heads = config["num_attention_heads"]
    return LlamaShape(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rows=config["vocab_size"],
        context=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        tied=config.get("tie_word_embeddings", False),
    )


def _expect(field: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise ExportError(f"config.json has {field} = {value!r}; the export supports {wanted!r} alone")


class Weights:
    """Lazy access to the folder's safetensors, sharded or not; use as a context manager."""

    def __init__(self, model: Path) -> None:
        self._folder = model
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Weights:
        from safetensors import safe_open

        shards = sorted(self._folder.glob("*.safetensors"))
        if not shards:
            raise ExportError(f"no *.safetensors in the model folder {self._folder}")
        for shard in shards:
            file = self._stack.enter_context(safe_open(shard, framework="pt"))
            self._files.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32, whatever it is stored in (f32, f16 or bf16: exact)."""
        return self._files[name].get_tensor(name).float().numpy()  # type: ignore[no-any-return]
