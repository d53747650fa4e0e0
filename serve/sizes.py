"""How large a model is, by its files alone: weights, cache per token, context. Nothing is loaded, torch not imported.

Weights come from the headers of the safetensors files or of the GGUF, tensor by tensor; a config that says otherwise is
not believed. The cache is counted from the config: keys and values of every layer that has any.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of the dtypes that a model can be served in."""
_FIRST_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.0\.")
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}


@dataclass(frozen=True)
class ModelSize:
    """What a model needs."""

    parameters: int
    stored: int
    """Bytes of all tensors, as they are in the files."""
    dtype: str
    """Of most parameters: "float32", "bfloat16", "float16"; a GGUF's own name, such as "Q8_0"; else safetensors'."""
    cache_numbers: int
    """Numbers in the key-value cache for one token."""
    context: int | None
    """Positions that the model has and a batch of sequences can use; None where the config does not say."""
    width: int
    """Of the widest activation of one token: the sum over the matrices of a layer that it passes at once."""
    matrices: tuple[tuple[int, int], ...] = ()
    """Shapes of the matrices of one layer, for timing."""

    def weights(self, dtype: str) -> int:
        """Bytes in `dtype`."""
        return self.parameters * BYTES[dtype]

    def cache(self, dtype: str) -> int:
        """Bytes of one token's keys and values in `dtype`."""
        return self.cache_numbers * BYTES[dtype]


def folder_size(folder: Path) -> ModelSize:
    """Of a Hugging Face model folder. Raises ValueError for one whose files do not say, FileNotFoundError for none."""
    tensors = _headers(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**config, **config.get("text_config", {})}
    counts: Counter[str] = Counter()
    for dtype, shape, _ in tensors.values():
        counts[dtype] += math.prod(shape)
    most = counts.most_common(1)[0][0]
    hidden = _first(config, "hidden_size", "n_embd", "d_model", "dim")
    layer = [shape for name, (_, shape, _) in tensors.items() if _FIRST_LAYER.search(name) and len(shape) == 2]
    matrices = tuple((shape[0], shape[1]) for shape in layer)
    return ModelSize(
        parameters=sum(counts.values()),
        stored=sum(size for _, _, size in tensors.values()),
        dtype=_STORED.get(most, most),
        cache_numbers=_cache_numbers(config, hidden),
        context=_positions(config),
        width=8 * hidden + sum(max(shape) for shape in matrices),
        matrices=matrices,
    )


def gguf_size(file: Path) -> ModelSize:
    """Of a GGUF file. Raises ValueError for one that cannot be read or lacks what llama.cpp asks for."""
    import gguf

    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        kind = str(fields["general.architecture"])
        heads, layers = fields[f"{kind}.attention.head_count"], int(fields[f"{kind}.block_count"])
        hidden = int(fields[f"{kind}.embedding_length"])
        cached = fields.get(f"{kind}.attention.head_count_kv", heads)
        context = int(fields[f"{kind}.context_length"])
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise ValueError(f"{file} is no GGUF model that can be read ({error}); export it again") from error
    query_heads = max(heads) if isinstance(heads, list) else int(heads)
    dims = [int(fields.get(f"{kind}.attention.{name}_length", hidden // query_heads)) for name in ("key", "value")]
    cached_heads = sum(map(int, cached)) if isinstance(cached, list) else int(cached) * layers
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return ModelSize(
        parameters=sum(counts.values()),
        stored=sum(int(tensor.n_bytes) for tensor in reader.tensors),
        dtype=counts.most_common(1)[0][0],
        cache_numbers=cached_heads * sum(dims),
        context=context,
        width=8 * hidden + 3 * int(fields.get(f"{kind}.feed_forward_length", 4 * hidden)),
    )


def _headers(folder: Path) -> dict[str, tuple[str, list[int], int]]:
    """name -> (dtype, shape, bytes) of every tensor."""
    found: dict[str, tuple[str, list[int], int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= file.stat().st_size - 8:
                raise ValueError(f"{file} is no whole safetensors file: its header would be {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
        for name, one in header.items():
            if name != "__metadata__":
                start, end = one["data_offsets"]
                found[name] = one["dtype"], one["shape"], end - start
        behind = max((one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"), default=0)
        if file.stat().st_size < 8 + length + behind:
            raise ValueError(f"{file} is cut short: its tensors end at byte {8 + length + behind}; fetch it again")
    if not found:
        raise FileNotFoundError(f"{folder} holds no *.safetensors; pickled weights are not read: convert them first")
    return found


def _positions(config: dict[str, Any]) -> int | None:
    """Without those beyond a sliding window or the first range of a longrope, as `engine.load.pick_context` has it."""
    found = [_first(config, "max_position_embeddings", "n_positions", "seq_length", required=False)]
    kinds = config.get("layer_types") or ["sliding"]
    if config.get("use_sliding_window", True) and any(kind != "full_attention" for kind in kinds):
        found.append(int(config.get("sliding_window") or 0))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        found.append(int(rope.get("original_max_position_embeddings") or 0))
    return min((positions for positions in found if positions), default=None)


def _cache_numbers(config: dict[str, Any], hidden: int) -> int:
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads")
    cached = _first(config, "num_key_value_heads", "num_kv_heads", required=False)
    if not cached:
        cached = 1 if config.get("multi_query") else heads
    key = config.get("head_dim") or hidden // heads
    return layers * cached * 2 * int(key)


def _first(config: dict[str, Any], *names: str, required: bool = True) -> int:
    for name in names:
        if config.get(name):
            return int(config[name])
    if required:
        raise ValueError(f"config.json says nothing about {names[0]}: give it, or serve the model as a GGUF")
    return 0
