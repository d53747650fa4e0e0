"""Writes a Llama or SmolLM3 model folder as one GGUF file, with gguf-py's writer.

llama.cpp's own converter recognises tokenizers by a hash of known ones, so it refuses every tokenizer trained here; the
tensors written here are the same bytes (tests/export/test_converter.py runs it). The bytes depend on the model folder
and the type only: no date, no path, no library version goes in.
Layout of names and the q/k row order: llama.cpp, `LLM_ARCH_LLAMA` (rotary pairs are neighbours there, halves in
Hugging Face's Llama). K- and I-quants are made from such a file by llama.cpp itself: `export/quants.py`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.limits import default_threads
from export.blocks import encode, encode_all
from export.huggingface import ExportError, LlamaShape, Rope, Weights, read_shape
from export.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType

_LOW_BIT = ("q4_0", "q4_1", "q5_0", "q5_1")


@dataclass(frozen=True)
class Written:
    """What one GGUF holds. `bits_per_weight`: bits of all tensors over all weights, norms and scales included."""

    bytes: int
    weights: int
    bits_per_weight: float
    tensor_types: dict[str, int]
    """GGML type -> number of tensors."""


@dataclass(frozen=True)
class _Tensor:
    source: str
    target: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    heads: int
    """Heads whose rows are to be reordered; 0 for tensors other than q and k."""


def write_gguf(model: Path, path: Path, kind: str, general: dict[str, str], threads: int | None = None) -> Written:
    """Write `model` to `path` with its matrices in `kind` (`"f16"`, `"q8_0"`, ...) and `general.*` metadata.

    The bytes do not depend on `threads`; None is `engine.limits.default_threads`.
    Raises ExportError for models that llama.cpp would not compute the same with.
    """
    import gguf

    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    shape = read_shape(model)
    vocabulary = read_vocabulary(model, shape.rows)
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, shape, vocabulary, kind, general)
    factors = rope_factors(shape.rope, shape.head_dim)
    with Weights(model) as weights:
        tensors = _plan(weights, shape, kind)
        if factors is not None:
            tensors.insert(0, _Tensor("", "rope_freqs.weight", (len(factors),), gguf.GGMLQuantizationType.F32, 0))
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.target, _byte_shape(tensor), _dtype(tensor), _bytes(tensor), raw_dtype=tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        matrices = ((_read(weights, tensor, factors), tensor.type) for tensor in tensors)
        with closing(encode_all(matrices, threads or default_threads())) as pieces:
            for tensor in tensors:
                _write_tensor(writer, pieces, _bytes(tensor))
    writer.close()
    return _measure(path, [(tensor.type.name, math.prod(tensor.shape), _bytes(tensor)) for tensor in tensors])


def _read(weights: Weights, tensor: _Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    """The tensor in llama.cpp's order of rows; `factors` is the one that has no source."""
    if factors is not None and not tensor.source:
        return factors
    matrix = weights.read(tensor.source)
    return permute(matrix, tensor.heads) if tensor.heads else matrix


def _write_tensor(writer: Any, pieces: Generator[np.ndarray], size: int) -> None:
    """What gguf-py's `write_tensor_data` does, but a piece at a time: `size` bytes, aligned on both sides."""
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    written = 0
    while written < size:
        written += file.write(next(pieces).data)
    writer.write_padding(file, size)


def read_written(path: Path) -> Written:
    """What a GGUF holds, read from the file."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    return _measure(path, [(tensor.tensor_type.name, tensor.n_elements, tensor.n_bytes) for tensor in tensors])


def metadata_difference(path: Path, shape: LlamaShape, vocabulary: Vocabulary) -> str | None:
    """First metadata of the GGUF `path` that is not what the model folder says; None if all of it is.

    `general.*` is left out: it changes nothing that is computed.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(None, shape.architecture)
    _add_metadata(writer, shape, vocabulary, "f32", {})
    wanted = {key: value.value for key, value in writer.kv_data[0].items()}
    found = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if not key.startswith(("tokenizer.", f"{shape.architecture}.")):
            continue
        if key not in wanted or key not in found:
            return f"{key} is {'missing' if key in wanted else 'unknown'}"
        here, there = wanted[key], found[key]
        if isinstance(here, list):
            index = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
            if index is not None or len(here) != len(there):
                at = min(len(here), len(there)) if index is None else index
                return f"{key} at {at}: {there[at : at + 1]}, the model has {here[at : at + 1]}"
        elif np.float32(here) != np.float32(there) if isinstance(here, float) else here != there:
            return f"{key} is {str(there)[:80]!r}, the model has {str(here)[:80]!r}"
    return None


def target_name(source: str, layers: int) -> str | None:
    """What a tensor of transformers is called in a GGUF; None if it has no name there."""
    import gguf

    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers).get_name(source, try_suffixes=(".weight",))  # type: ignore[no-any-return]


def _measure(path: Path, tensors: list[tuple[str, int, int]]) -> Written:
    """What the file `path` holds, from (GGML type, weights, bytes) of its tensors."""
    count = sum(weights for _, weights, _ in tensors)
    bits = 8 * sum(size for _, _, size in tensors)
    types = Counter(name.lower() for name, _, _ in tensors)
    return Written(path.stat().st_size, count, round(bits / count, 4), dict(sorted(types.items())))


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """A GGUF that llama.cpp loads and that can only tokenize: `vocabulary` over one layer of zeros."""
    import gguf
    import torch

    width = 32
    shape = LlamaShape(
        "llama", 1, width, width, 1, 1, width, len(vocabulary.tokens), 256, 1e-5, Rope("default", 1e4), tied=True
    )
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, shape, vocabulary, "f16", {})
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    for source, size in _expected(shape).items():
        kind = gguf.GGMLQuantizationType.F32 if len(size) == 1 else gguf.GGMLQuantizationType.F16
        writer.add_tensor(names.get_name(source, try_suffixes=(".weight",)), encode(torch.zeros(size), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors(rope: Rope, head_dim: int) -> torch.Tensor | None:
    """Llama 3's divisors of the rotary frequencies, float32 [head_dim / 2]; None for other types.

    Frequencies above a wavelength of original context / low_freq_factor are divided by `factor`, those below original
    context / high_freq_factor by 1, those between by a mixture (transformers, `_compute_llama3_parameters`).
    In float32 throughout, as llama.cpp's converter has it.
    """
    import torch

    if rope.type != "llama3":
        return None
    factor, low, high = (rope.options[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = rope.options["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / (1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)))
    smooth = (context / wavelengths - low) / (high - low)
    mixed = 1 / ((1 - smooth) / factor + smooth)
    found = torch.where(wavelengths > context / low, torch.tensor(float(factor)), mixed)
    return torch.where(wavelengths < context / high, torch.tensor(1.0), found)


def permute(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """A view [heads, head_dim / 2, 2, width] of a q or k projection [heads * head_dim, width], its rows from Hugging
    Face's halves to llama.cpp's neighbours."""
    rows, width = matrix.shape
    return matrix.view(heads, 2, rows // heads // 2, width).swapaxes(1, 2)


def _plan(weights: Weights, shape: LlamaShape, kind: str) -> list[_Tensor]:
    """The GGUF's tensors in file order. Raises ExportError for tensors that are missing or unknown."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)  # SmolLM3's are the same
    wanted = _expected(shape)
    found = {name for name in weights.names() if not name.endswith("rotary_emb.inv_freq")}
    if shape.tied:
        found.discard("lm_head.weight")
    if odd := sorted(found ^ wanted.keys()):
        raise ExportError(f"tensor {odd[0]!r} is {'unknown' if odd[0] in found else 'missing'}: not a plain Llama")
    plan = []
    for source, expected in wanted.items():
        if (actual := weights.shape(source)) != expected:
            raise ExportError(f"tensor {source!r} has shape {actual}, config.json says {expected}")
        target = names.get_name(source, try_suffixes=(".weight",))
        heads = shape.heads if ".q_proj." in source else shape.kv_heads if ".k_proj." in source else 0
        plan.append(_Tensor(source, target, expected, _type_of(target, expected, kind, shape.tied), heads))
    return plan


def _expected(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    width, inner = shape.width, shape.feed_forward
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.rows, width)}
    block = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (query, width),
        "self_attn.k_proj": (key, width),
        "self_attn.v_proj": (key, width),
        "self_attn.o_proj": (width, query),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    for layer in range(shape.layers):
        expected |= {f"model.layers.{layer}.{name}.weight": size for name, size in block.items()}
    expected["model.norm.weight"] = (width,)
    if not shape.tied:
        expected["lm_head.weight"] = (shape.rows, width)
    return expected


def _type_of(target: str, shape: tuple[int, ...], kind: str, tied: bool) -> GGMLQuantizationType:
    """Norms stay f32. Rows that do not divide into blocks fall back to f16. Below 8 bits the matrix that makes the
    logits keeps q8_0: it is where quantising costs most, and llama.cpp's quantiser spares it as well."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    makes_logits = target == ("token_embd.weight" if tied else "output.weight")
    chosen = gguf.GGMLQuantizationType["Q8_0" if makes_logits and kind in _LOW_BIT else kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[chosen]
    return chosen if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _byte_shape(tensor: _Tensor) -> tuple[int, ...]:
    import gguf

    return tensor.shape if _is_float(tensor) else gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type)  # type: ignore[no-any-return]


def _dtype(tensor: _Tensor) -> Any:
    import numpy as np

    if not _is_float(tensor):
        return np.dtype(np.uint8)
    return np.dtype(np.float32 if tensor.type.name == "F32" else np.float16)


def _is_float(tensor: _Tensor) -> bool:
    return tensor.type.name in ("F32", "F16")


def _bytes(tensor: _Tensor) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[tensor.type]
    return int(math.prod(tensor.shape) // block * size)


def _add_metadata(writer: Any, shape: LlamaShape, vocabulary: Vocabulary, kind: str, general: dict[str, str]) -> None:
    import gguf

    writer.add_type("model")
    for key, value in general.items():
        writer.add_string(f"general.{key}", value)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    _add_rope(writer, shape.rope)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for role, token_id in vocabulary.special_ids.items():
        getattr(writer, f"add_{role}_token_id")(token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.chat_template)


def _add_rope(writer: Any, rope: Rope) -> None:
    """Llama 3's scaling is in the tensor `rope_freqs.weight`, not in the metadata."""
    import gguf

    writer.add_rope_freq_base(rope.theta)
    if rope.type not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType[rope.type.upper()])
    writer.add_rope_scaling_factor(rope.options["factor"])
    if rope.type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.options["original_max_position_embeddings"])
    for option, add in (
        ("attention_factor", "attn_factor"),
        ("beta_fast", "beta_fast"),
        ("beta_slow", "beta_slow"),
    ):
        if option in rope.options:
            getattr(writer, f"add_rope_scaling_yarn_{add}")(rope.options[option])
