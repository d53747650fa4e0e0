"""The numbers at the start of a GGUF file, read without numpy and without the tensors.

gguf-py's reader makes an array of every string of the vocabulary. Here reading ends where the vocabulary starts: all
that is wanted comes before it, in files of llama.cpp's converter as in those of `export/`. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS = 100_000


class NotGguf(ValueError):
    """The file is no GGUF model that can be read; the message names it."""


@dataclass(frozen=True)
class Header:
    """What sizes a cache: `context` in tokens; `cache_bytes` of one token's keys and values in 16 bits."""

    context: int
    cache_bytes: int


def read_header(path: Path) -> Header:
    """Raises NotGguf, or OSError."""
    try:
        with path.open("rb") as file:
            fields = _fields(file)
        kind = fields["general.architecture"]
        heads = fields[f"{kind}.attention.head_count"]
        width = fields[f"{kind}.embedding_length"] // heads
        cached_heads = fields.get(f"{kind}.attention.head_count_kv", heads)
        key = fields.get(f"{kind}.attention.key_length", width)
        value = fields.get(f"{kind}.attention.value_length", width)
        cache = 2 * fields[f"{kind}.block_count"] * cached_heads * (key + value)
        return Header(int(fields[f"{kind}.context_length"]), int(cache))
    except (struct.error, KeyError, TypeError, ZeroDivisionError, ValueError, OverflowError, RecursionError) as error:
        raise NotGguf(f"{path} is no GGUF model that can be read ({type(error).__name__}: {error})") from error


def _fields(file: BinaryIO) -> dict[str, Any]:
    """Metadata up to the tokenizer's. An array stands as its length, or as its largest number (heads by layer)."""
    magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version not in (2, 3) or count > _MOST_KEYS:
        raise KeyError(f"it starts with {magic!r}, version {version}")
    fields: dict[str, Any] = {}
    for _ in range(count):
        name = _string(file)
        if name.startswith("tokenizer.") and "general.architecture" in fields:
            break
        fields[name] = _value(file, *struct.unpack("<I", file.read(4)))
    return fields


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", file.read(12))
        values = [_value(file, inner) for _ in range(length)]
        return max(values) if values and inner in _FIXED else length
    layout = "<" + _FIXED[kind]
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > 1 << 24:
        raise KeyError(f"a string of {length} bytes")
    return file.read(length).decode()
