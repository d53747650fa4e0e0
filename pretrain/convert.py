"""A nanotron checkpoint, however it was sharded, as a Hugging Face Llama folder.

Each tensor is put together from its shards by the slices in their metadata, so any tp and pp will do, without nanotron
or a process group. Three things differ between the two models:

- nanotron's rotary embedding pairs neighbours (0, 1), Hugging Face's pairs halves (0, D/2): the rows of each query and
  key head are reordered (evens, then odds);
- q, k, v and gate, up are one matrix each in nanotron;
- a tied head is not stored.

One tensor is held at a time until all are written: memory is the size of the model. The same checkpoint gives the same
bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from acorn.tokenizers import copy_tokenizer
from pretrain.arguments import ROPE_THETA
from pretrain.config import PretrainConfig

END_OF_GENERATION = ("<|im_end|>", "<|endoftext|>")


def convert(checkpoint: Path, config: PretrainConfig, tokenizer: Path, out: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files to `out`.

    `checkpoint`: folder with `model_config.json` and `model/`. Raises ValueError if a tensor is not covered by shards.
    """
    model: dict[str, Any] = json.loads((checkpoint / "model_config.json").read_text())
    model["max_position_embeddings"] = config.model.get("max_position_embeddings", config.sequence_length)
    save_file(hugging_face_tensors(checkpoint / "model", model), out / "model.safetensors", metadata={"format": "pt"})
    ids = special_ids(tokenizer)
    _write_json(out / "config.json", hugging_face_config(model, config, ids))
    _write_json(out / "generation_config.json", {"_from_model_config": False, **ids})
    copy_tokenizer(tokenizer, out)


def hugging_face_config(model: dict[str, Any], config: PretrainConfig, ids: dict[str, Any]) -> dict[str, Any]:
    """config.json of transformers' LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "dtype": config.dtype,
        "head_dim": model["hidden_size"] // model["num_attention_heads"],
        "initializer_range": config.init_std,
        "rope_parameters": {"rope_theta": float(config.model.get("rope_theta", ROPE_THETA)), "rope_type": "default"},
        "use_cache": True,
        **ids,
        **{name: model[name] for name in _SHARED_NAMES},
    }


_SHARED_NAMES = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


def hugging_face_tensors(shards: Path, model: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of the checkpoint under transformers' names; `model`: nanotron's LlamaConfig as a dict."""
    heads, key_value_heads = model["num_attention_heads"], model["num_key_value_heads"]
    width = model["hidden_size"]
    head_dim = width // heads
    tensors = {
        "model.embed_tokens.weight": read_tensor(shards / "model/token_position_embeddings/pp_block/token_embedding"),
        "model.norm.weight": read_tensor(shards / "model/final_layer_norm/pp_block"),
    }
    if not model["tie_word_embeddings"]:
        tensors["lm_head.weight"] = read_tensor(shards / "model/lm_head/pp_block")
    for layer in range(model["num_hidden_layers"]):
        block, name = shards / f"model/decoder/{layer}/pp_block", f"model.layers.{layer}"
        sizes = [heads * head_dim, key_value_heads * head_dim, key_value_heads * head_dim]
        query, key, value = torch.split(read_tensor(block / "attn/qkv_proj"), sizes)
        gate, up = read_tensor(block / "mlp/gate_up_proj").chunk(2)
        tensors |= {
            f"{name}.input_layernorm.weight": read_tensor(block / "input_layernorm"),
            f"{name}.self_attn.q_proj.weight": halves_from_pairs(query, heads),
            f"{name}.self_attn.k_proj.weight": halves_from_pairs(key, key_value_heads),
            f"{name}.self_attn.v_proj.weight": value,
            f"{name}.self_attn.o_proj.weight": read_tensor(block / "attn/o_proj"),
            f"{name}.post_attention_layernorm.weight": read_tensor(block / "post_attention_layernorm"),
            f"{name}.mlp.gate_proj.weight": gate,
            f"{name}.mlp.up_proj.weight": up,
            f"{name}.mlp.down_proj.weight": read_tensor(block / "mlp/down_proj"),
        }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """(heads * D, width): rows of each head from (0, 1, 2, 3, ...) to (0, 2, ..., 1, 3, ...)."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def read_tensor(folder: Path) -> Tensor:
    """The weight stored in `folder`, put together from one file per tensor-parallel process."""
    files = sorted(folder.glob("model_weight*.safetensors"))
    if not files:
        raise ValueError(f"no weight in {folder}: not a checkpoint of this model")
    whole: Tensor | None = None
    covered = 0
    for file in files:
        with safe_open(file, framework="pt") as handle:
            facts: dict[str, str] = handle.metadata() or {}
            data: Tensor = handle.get_tensor("data")
        if "unsharded_shape" not in facts:
            return data
        shape = _integers(facts["unsharded_shape"].strip("()"))
        whole = torch.empty(shape, dtype=data.dtype) if whole is None else whole
        for pair in facts["local_global_slices_pairs"].split(";"):
            local, target = (_slices(side) for side in pair.split("#"))
            whole[target] = data[local]
            covered += data[local].numel()
    assert whole is not None
    if covered != whole.numel():
        raise ValueError(f"the shards in {folder} hold {covered} of {whole.numel()} numbers: a file is missing")
    return whole


def _slices(text: str) -> tuple[slice, ...]:
    """`"0,10,None|None,None,None"`: start, stop and step of each dimension."""
    return tuple(slice(*(None if n == "None" else int(n) for n in part.split(","))) for part in text.split("|"))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def special_ids(tokenizer: Path) -> dict[str, Any]:
    """`bos_token_id`, `eos_token_id` (a list: whatever ends generation) and `pad_token_id`, as far as they exist."""
    added = {
        entry["content"]: entry["id"]
        for entry in json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]
    }
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    named = {role: _content(settings.get(f"{role}_token")) for role in ("bos", "eos", "pad")}
    ends = [added[token] for token in dict.fromkeys([*END_OF_GENERATION, named["eos"]]) if token in added]
    ids: dict[str, Any] = {f"{role}_token_id": added[token] for role, token in named.items() if token in added}
    return {**ids, "eos_token_id": ends} if ends else ids


def _content(token: Any) -> str:
    """A token in tokenizer_config.json is a string or {"content": ...}."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
