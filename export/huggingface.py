"""Reads a Hugging Face Llama or SmolLM3 folder: what its config says, and its weights one tensor at a time.

Refused before any work: every other architecture, because the GGUF names and the q/k row order are Llama's alone, and
whatever llama.cpp would silently compute otherwise. Weights are read lazily (one tensor in memory), so exporting costs
about one matrix of RAM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SUPPORTED = ("llama", "smollm3")
NO_ROPE_STEP = 4
"""llama.cpp leaves rotary embeddings out of every fourth SmolLM3 layer; it is compiled in."""


class ExportError(ValueError):
    """The model folder cannot become a GGUF that llama.cpp computes the same with; the message says why."""


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings. `type`: default, linear, yarn or llama3; `options`: its parameters under their HF names."""

    type: str
    theta: float
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LlamaShape:
    """The figures of config.json that llama.cpp needs."""

    architecture: str
    """`model_type`, which is also llama.cpp's name."""
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
    rope: Rope
    tied: bool


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ExportError where the file is missing."""
    if not path.is_file():
        raise ExportError(f"{path.name} is missing from the model folder {path.parent}")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def read_shape(model: Path) -> LlamaShape:
    """Shape of the model in folder `model`. Raises ExportError for anything that is not a plain Llama or SmolLM3."""
    config = read_json(model / "config.json")
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise ExportError(f"model_type is {kind!r}; the export supports {' and '.join(map(repr, SUPPORTED))}")
    _expect("hidden_act", config.get("hidden_act", "silu"), "silu")
    _expect("attention_bias", config.get("attention_bias", False), False)
    _expect("mlp_bias", config.get("mlp_bias", False), False)
    if kind == "smollm3":
        _check_no_rope_layers(config)
    heads = config["num_attention_heads"]
    return LlamaShape(
        architecture=kind,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rows=config["vocab_size"],
        context=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        rope=_read_rope(config),
        tied=config.get("tie_word_embeddings", kind == "smollm3"),
    )


def _read_rope(config: dict[str, Any]) -> Rope:
    """Raises ExportError for scalings that llama.cpp does not have, or computes with other constants."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    theta = float(given.get("rope_theta", config.get("rope_theta", 10000.0)))
    _expect("partial_rotary_factor", given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)), 1.0)
    wanted = _ROPE_OPTIONS.get(kind)
    if wanted is None:
        raise ExportError(f"config.json has rope_type = {kind!r}; the export supports {', '.join(_ROPE_OPTIONS)}")
    if kind == "llama3" and config["model_type"] == "smollm3":
        raise ExportError("config.json has rope_type = 'llama3', which llama.cpp does not apply to SmolLM3")
    missing = [name for name in wanted if given.get(name) is None]
    if missing:
        raise ExportError(f"config.json has rope_type = {kind!r} without {missing[0]}, which llama.cpp needs")
    options = {name: given[name] for name in wanted}
    if kind == "yarn":
        _check_yarn(given)
        options |= {name: given[name] for name in ("attention_factor", "beta_fast", "beta_slow") if given.get(name)}
    return Rope(kind, theta, options)


_ROPE_OPTIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _check_yarn(given: dict[str, Any]) -> None:
    """llama.cpp always scales attention by 1 + ln(factor) / 10 and rounds the corrected range."""
    own = 0.1 * math.log(given["factor"]) + 1 if given["factor"] > 1 else 1.0
    if given.get("attention_factor") and not math.isclose(given["attention_factor"], own, rel_tol=1e-6):
        raise ExportError(
            f"config.json has rope attention_factor = {given['attention_factor']}; llama.cpp takes {own:.6g} whatever "
            "is given"
        )
    for name in ("mscale", "mscale_all_dim"):
        _expect(f"rope {name}", given.get(name), None)
    _expect("rope truncate", given.get("truncate", True), True)


def _check_no_rope_layers(config: dict[str, Any]) -> None:
    layers, step = config["num_hidden_layers"], config.get("no_rope_layer_interval", NO_ROPE_STEP)
    found = config.get("no_rope_layers") or [int((layer + 1) % step != 0) for layer in range(layers)]
    if found[:layers] != [int((layer + 1) % NO_ROPE_STEP != 0) for layer in range(layers)]:
        raise ExportError(
            f"config.json has no_rope_layers = {found}; llama.cpp leaves rotary embeddings out of every "
            f"{NO_ROPE_STEP}th layer of a SmolLM3, whatever is given"
        )
    odd = {kind for kind in config.get("layer_types") or [] if kind != "full_attention"}
    if odd:
        raise ExportError(f"config.json has layer_types {sorted(odd)}; the export supports 'full_attention' alone")


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

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is stored (f32, f16 or bf16)."""
        return self._files[name].get_tensor(name)  # type: ignore[no-any-return]
