"""Small Llama folders for the export tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def make_model(
    tokenizer: Path,
    folder: Path,
    tied: bool = True,
    feed_forward: int = 128,
    extra_rows: int = 0,
    scale: float = 0.1,
    kind: str = "llama",
    **more: Any,
) -> Path:
    """A random Llama or SmolLM3 (64 wide, 2 layers, 4 query and 2 key-value heads) with `tokenizer`'s files.

    `scale`: standard deviation of the weights; 0.1 gives distributions peaked enough for a top-1 to mean something.
    `more`: fields of config.json.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    rows = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + extra_rows
    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 3}
    fields: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": 64,
        "intermediate_size": feed_forward,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": scale,
        "tie_word_embeddings": tied,
    }
    config = AutoConfig.for_model(kind, **(fields | ids | more))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    return folder
