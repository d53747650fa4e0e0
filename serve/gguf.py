"""Tokenizer and chat template of a GGUF, for the front: the file's vocabulary in the library tokenizers."""

from __future__ import annotations

from pathlib import Path

from acorn.gguf import read_tokenizer
from serve.tokenizer import TextTokenizer


def read_gguf(file: Path) -> tuple[TextTokenizer, str | None]:
    """The tokenizer, and the chat template if there is one. Raises ValueError for a kind that is not known."""
    import gguf

    try:
        fields = gguf.GGUFReader(file).fields
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is no GGUF that can be read: {error}") from error
    found = read_tokenizer(file, fields)
    return TextTokenizer(found.tokenizer, found.names), found.chat_template
