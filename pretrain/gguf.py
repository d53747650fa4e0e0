"""A GGUF file as a Hugging Face model folder.

Each weight becomes what the file's numbers stand for (`gguf.dequantize`), in float32, which holds every type's values
exactly. transformers (5.23) reads such files, too, but refuses to save what it has read, leaves out without a word what
it has no place for (rope scaling, biases), and knows no `smollm`: it cuts such text by GPT-2's rules, which gives other
tokens where white space precedes a digit. So a file with more than a plain Llama holds is refused here, and the
tokenizer is `acorn.gguf`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acorn.gguf import ORIGIN, GgufTokenizer, read_tokenizer

if TYPE_CHECKING:
    import numpy as np

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of tensors and transformers'."""
_REMEDY = "take the model's safetensors folder instead"


def check_gguf(file: Path) -> None:
    """Raises ValueError for a file that cannot become a model folder that computes the same."""
    _check(file, _open(file))


def unpack_gguf(file: Path, out: Path) -> None:
    """Write the model in `file` to `out`: weights, config, tokenizer, chat template (if any) and ORIGIN.

    Takes the model in float32 as memory. Raises ValueError as `check_gguf` does.
    """
    reader = _open(file)
    tokenizer = _check(file, reader)
    _write_tokenizer(tokenizer, out)
    _write_config(file, reader, tokenizer, out)
    _write_weights(file, reader, out)
    types = Counter(tensor.tensor_type.name.lower() for tensor in reader.tensors)
    with file.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    origin = {"sha256": digest, "tensor_types": dict(sorted(types.items())), "general": _general(reader)}
    (out / ORIGIN).write_text(json.dumps(origin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open(file: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ValueError(f"{file} is no GGUF that can be read: {error}") from error


def _check(file: Path, reader: Any) -> GgufTokenizer:
    kind = _value(reader, "general.architecture")
    if kind != "llama":
        raise ValueError(f"{file.name} holds a model of architecture {kind!r}; acorn reads GGUFs of 'llama': {_REMEDY}")
    _check_tensors(file, reader)
    if (scaling := _value(reader, "llama.rope.scaling.type", "none")) != "none":
        raise ValueError(
            f"{file.name} scales its rotary embeddings ({scaling!r}), which acorn does not read: {_REMEDY}"
        )
    head = _number(file, reader, "embedding_length") // _number(file, reader, "attention.head_count")
    sizes = {
        name: _value(reader, f"llama.{name}", head)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{file.name} has heads of several sizes ({sizes}), which a Llama in transformers has not: {_REMEDY}"
        )
    if (pre := _value(reader, "tokenizer.ggml.pre")) in (None, "default"):
        raise ValueError(f"{file.name} does not say how text is cut (tokenizer.ggml.pre is {pre!r}): {_REMEDY}")
    return read_tokenizer(file, reader.fields)


def _check_tensors(file: Path, reader: Any) -> None:
    wanted = _names(file, reader).keys() - {"output.weight"}
    found = {tensor.name for tensor in reader.tensors} - {"output.weight"}
    if odd := sorted(found ^ wanted):
        what = "a tensor that a plain Llama has not" if odd[0] in found else "no tensor"
        raise ValueError(f"{file.name} has {what}, {odd[0]!r}: {_REMEDY}")


def _names(file: Path, reader: Any) -> dict[str, str]:
    """llama.cpp's name -> transformers', of every tensor that a Llama of so many layers may have."""
    layers = range(_number(file, reader, "block_count"))
    blocks = {f"blk.{n}.{name}": f"model.layers.{n}.{target}" for n in layers for name, target in _BLOCK.items()}
    return {f"{name}.weight": f"{target}.weight" for name, target in (_OUTER | blocks).items()}


def _write_weights(file: Path, reader: Any, out: Path) -> None:
    import gguf
    import numpy as np
    from safetensors.numpy import save_file

    names = _names(file, reader)
    heads = _number(file, reader, "attention.head_count")
    rotated = {"attn_q": heads, "attn_k": _value(reader, "llama.attention.head_count_kv", heads)}
    tensors = {}
    for tensor in reader.tensors:
        matrix = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        count = rotated.get(tensor.name.split(".")[-2])
        tensors[names[tensor.name]] = np.ascontiguousarray(matrix if count is None else _halves(matrix, count))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def _halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection [heads * head_dim, width], from llama.cpp's neighbours to halves."""
    rows, width = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _write_config(file: Path, reader: Any, tokenizer: GgufTokenizer, out: Path) -> None:
    heads, width = _number(file, reader, "attention.head_count"), _number(file, reader, "embedding_length")
    roles = {role: tokenizer.names.get(f"{role}_token") for role in ("bos", "eos", "pad")}
    rows = next(tensor.shape[1] for tensor in reader.tensors if tensor.name == "token_embd.weight")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        "head_dim": _value(reader, "llama.attention.key_length", width // heads),
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": _number(file, reader, "feed_forward_length"),
        "max_position_embeddings": _number(file, reader, "context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": _number(file, reader, "block_count"),
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv", heads),
        "rms_norm_eps": float(f"{_value(reader, 'llama.attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_parameters": {"rope_theta": float(_value(reader, "llama.rope.freq_base", 1e4)), "rope_type": "default"},
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "vocab_size": int(rows),
        **{f"{role}_token_id": tokenizer.tokenizer.token_to_id(token) for role, token in roles.items() if token},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(found: GgufTokenizer, out: Path) -> None:
    """As the stage `tokenizer` writes one."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=found.tokenizer, **found.names, clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = found.chat_template
    wrapped.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"add_bos_token": found.begins, "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    found.tokenizer.save(str(out / "tokenizer.json"))


def _general(reader: Any) -> dict[str, str]:
    fields = {name: field.contents() for name, field in sorted(reader.fields.items()) if name.startswith("general.")}
    return {name.removeprefix("general."): value for name, value in fields.items() if isinstance(value, str)}


def _number(file: Path, reader: Any, name: str) -> int:
    found = _value(reader, f"llama.{name}")
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"{file.name} has llama.{name} = {found!r}, which must be a number: {_REMEDY}")
    return found


def _value(reader: Any, name: str, default: Any = None) -> Any:
    found = reader.fields.get(name)
    return default if found is None else found.contents()
