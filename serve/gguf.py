"""Tokenizer and chat template of a GGUF, for the front and for searches: its vocabulary in the library tokenizers.

llama.cpp knows how text is cut before BPE by a name. The names here are those acorn exports (`smollm`, `gpt-2`) and
those of Llama 3 and Qwen 2 and 3; a file with another is refused rather than tokenised almost rightly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve.tokenizer import TextTokenizer

_NUMBERS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4
"""gguf.TokenType"""


def read_gguf(file: Path) -> tuple[TextTokenizer, str | None]:
    """The tokenizer, and the chat template if there is one. Raises ValueError for a kind that is not known."""
    tokenizer, names, template = _read(file)
    return TextTokenizer(tokenizer, names), template


def fast_tokenizer(file: Path) -> Any:
    """The same for a worker that searches: a tokenizer of transformers, with every control token special."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, names, template = _read(file)
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special, **names)
    fast.chat_template = template
    return fast


def _read(file: Path) -> tuple[Any, dict[str, str], str | None]:
    """`tokenizers.Tokenizer`, the names of its special tokens, chat template."""
    import gguf

    try:
        fields = gguf.GGUFReader(file).fields
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is no GGUF that can be read: {error}") from error

    def value(name: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.{name}")
        return default if found is None else found.contents()

    tokens, names = value("ggml.tokens", []), {}
    for name in ("bos", "eos"):
        if (token := value(f"ggml.{name}_token_id")) is not None:
            names[f"{name}_token"] = tokens[token]
    model, pre = value("ggml.model"), value("ggml.pre", "gpt-2")
    if model != "gpt2":
        raise ValueError(f"{file.name} has a tokenizer of kind '{model}'; served are GGUFs with byte-level BPE (gpt2)")
    tokenizer = _tokenizer(file, pre, tokens, value("ggml.merges", []), value("ggml.token_type"))
    begins = names.get("bos_token") if value("ggml.add_bos_token", False) else None
    if begins is not None:
        _begin_with(tokenizer, begins)
    return tokenizer, names, value("chat_template")


def _tokenizer(file: Path, pre: str, tokens: list[str], merges: list[str], types: list[int] | None) -> Any:
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
    raise ValueError(
        f"{file.name} cuts text by the rules of '{pre}'; known are {known}: serve the model folder instead"
    )


def _begin_with(tokenizer: Any, token: str) -> None:
    from tokenizers import processors

    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])
