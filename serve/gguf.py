"""Tokenizer and chat template of a GGUF, for the front and for searches: its vocabulary in the library tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acorn.gguf import GgufTokenizer, read_tokenizer
from serve.tokenizer import TextTokenizer


def read_gguf(file: Path) -> tuple[TextTokenizer, str | None]:
    """The tokenizer, and the chat template if there is one. Raises ValueError for a kind that is not known."""
    found = _read(file)
    return TextTokenizer(found.tokenizer, found.names), found.chat_template


def fast_tokenizer(file: Path) -> Any:
    """The same for a worker that searches: a tokenizer of transformers, with every control token special."""
    from transformers import PreTrainedTokenizerFast

    found = _read(file)
    special = [token.content for token in found.tokenizer.get_added_tokens_decoder().values() if token.special]
    fast = PreTrainedTokenizerFast(tokenizer_object=found.tokenizer, additional_special_tokens=special, **found.names)
    fast.chat_template = found.chat_template
    return fast


def _read(file: Path) -> GgufTokenizer:
    import gguf

    try:
        fields = gguf.GGUFReader(file).fields
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is no GGUF that can be read: {error}") from error
    return read_tokenizer(file, fields)
