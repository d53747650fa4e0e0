"""The files that make up a tokenizer, which travel unchanged from stage to stage."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files that `source` has, byte for byte. `save_pretrained` would rewrite them."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
