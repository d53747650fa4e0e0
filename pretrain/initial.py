"""A Hugging Face Llama's weights under nanotron's names: the way back of `convert`.

Whole tensors, read one at a time; who asks keeps his shard, so any tp and pp will do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

WHOLE = {
    "model.token_position_embeddings.pp_block.token_embedding.weight": "model.embed_tokens.weight",
    "model.final_layer_norm.pp_block.weight": "model.norm.weight",
    "model.lm_head.pp_block.weight": "lm_head.weight",
}
WHOLE_OF_A_LAYER = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "attn.o_proj": "self_attn.o_proj",
    "mlp.down_proj": "mlp.down_proj",
}


class InitialWeights:
    """The weights in a model folder. A tied head is asked for under the embedding's name."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "model.safetensors"
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if (kind := config.get("model_type", "llama")) != "llama":
            raise ValueError(f"{folder} is a {kind}; nanotron 0.4 goes on from Llamas alone")
        self._heads: int = config["num_attention_heads"]
        self._key_value_heads: int = config.get("num_key_value_heads") or self._heads

    def tensor(self, name: str) -> Tensor:
        """The whole of nanotron's parameter `name`, in the file's dtype. Raises KeyError for a name that is none."""
        if name in WHOLE:
            return self._read(WHOLE[name])
        before, _, part = name.removesuffix(".weight").partition(".pp_block.")
        block = before.replace("model.decoder.", "model.layers.", 1)
        if part in WHOLE_OF_A_LAYER:
            return self._read(f"{block}.{WHOLE_OF_A_LAYER[part]}.weight")
        if part == "attn.qkv_proj":
            query, key, value = (self._read(f"{block}.self_attn.{letter}_proj.weight") for letter in "qkv")
            return torch.cat(
                [pairs_from_halves(query, self._heads), pairs_from_halves(key, self._key_value_heads), value]
            )
        if part == "mlp.gate_up_proj":
            return torch.cat([self._read(f"{block}.mlp.{half}_proj.weight") for half in ("gate", "up")])
        raise KeyError(f"{name} has no counterpart in a Hugging Face Llama")

    def _read(self, name: str) -> Tensor:
        with safe_open(self._file, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor


def pairs_from_halves(weight: Tensor, heads: int) -> Tensor:
    """(heads * D, width): rows of each head from (0, 2, ..., 1, 3, ...) to (0, 1, 2, 3, ...)."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
