"""The files that make up a tokenizer, which travel unchanged from stage to stage."""

from __future__ import annotations

import json
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


def believe_tokenizer_file(folder: Path, made: str) -> None:
    """Have transformers take the tokenizer.json in `folder` as it is, where it would not.

    `made`: the tokenizer that transformers makes of the folder, as JSON (`backend_tokenizer.to_str()`). Of some classes
    transformers 5 takes vocabulary and merges alone and makes the rest anew: SmolLM2's config names GPT2Tokenizer, and
    the pre-tokenizer that sets digits apart is gone. The class is changed to the one that reads the file.
    """
    from tokenizers import Tokenizer

    rules = ("normalizer", "pre_tokenizer", "decoder")
    written, found = json.loads(Tokenizer.from_file(str(folder / "tokenizer.json")).to_str()), json.loads(made)
    if all(written[rule] == found[rule] for rule in rules):
        return
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
