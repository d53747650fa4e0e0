"""What several packages know of GGUF files: the tokenizer in one, in the library tokenizers, and where a model says
that it began as one.

llama.cpp knows how text is cut before BPE by a name. The names here are those acorn exports (`smollm`, `gpt-2`,
`llama-bpe`) and Qwen 2's and 3's; a file with another is refused rather than tokenised almost rightly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ORIGIN = "origin.json"
"""In the folder of a model that began as a GGUF file: its `sha256`, its `tensor_types`, and its `general.*` texts."""
_NUMBERS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4
"""gguf.TokenType"""


@dataclass(frozen=True)
class GgufTokenizer:
    """`names`: bos_token, eos_token, pad_token, unk_token, as far as the file has them; `begins`: whether the tokenizer
    puts bos before a text."""

    tokenizer: Tokenizer
    names: dict[str, str]
    begins: bool
    chat_template: str | None


def read_tokenizer(file: Path, fields: dict[str, Any]) -> GgufTokenizer:
    """That of a GGUF with these `gguf.GGUFReader(file).fields`. Raises ValueError for a kind that is not known."""

    def value(name: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.{name}")
        return default if found is None else found.contents()

    tokens, names = value("ggml.tokens", []), {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if (token := value(f"ggml.{key}_token_id")) is not None and token < len(tokens):
            names[f"{name}_token"] = tokens[token]
    model, pre = value("ggml.model"), value("ggml.pre", "gpt-2")
    if model != "gpt2":
        raise ValueError(f"{file.name} has a tokenizer of kind '{model}'; acorn reads byte-level BPE (gpt2) alone")
    tokenizer = _tokenizer(file, pre, tokens, value("ggml.merges", []), value("ggml.token_type"))
    begins = bool(value("ggml.add_bos_token", False)) and "bos_token" in names
    if begins:
        _begin_with(tokenizer, names["bos_token"])
    return GgufTokenizer(tokenizer, names, begins, value("chat_template"))


def _tokenizer(file: Path, pre: str, tokens: list[str], merges: list[str], types: list[int] | None) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = _pre_tokenizer(file, pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        from tokenizers import normalizers

        tokenizer.normalizer = normalizers.NFC()
    kinds = types or [1] * len(tokens)
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def _pre_tokenizer(file: Path, pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in ("gpt-2", "default"):
        return plain
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if pre in _NUMBERS:
        words = Regex(_WORDS.replace("NUMBERS", _NUMBERS[pre]))
        split = pre_tokenizers.Split(words, behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = ", ".join(("gpt-2", "smollm", *_NUMBERS))
    raise ValueError(f"{file.name} cuts text by the rules of '{pre}'; known are {known}: take the model folder instead")


def _begin_with(tokenizer: Any, token: str) -> None:
    from tokenizers import processors

    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
