"""What the server's front and its worker say to each other: JSON messages, with token ids as raw uint32 beside them.

A frame is two little-endian uint32 (bytes of JSON, bytes of ids), the JSON, the ids. 10,000 ids are 40 kB and one
memcpy, where JSON would be 10,000 numbers to print and parse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import orjson

_HEADER = struct.Struct("<II")
MOST = 1 << 28
"""Bytes of a frame; more means that the two lost step."""

Message = dict[str, Any]


def pack(message: Message, ids: bytes = b"") -> bytes:
    """One frame. Raises ValueError for a message that JSON cannot hold (nested too deep, for one)."""
    try:
        head = orjson.dumps(message)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error
    return b"".join((_HEADER.pack(len(head), len(ids)), head, ids))


class Unpacker:
    """Frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Message, bytes]]:
        """The frames that are complete with `data`. Raises ValueError where no frame can be."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            head, ids = _HEADER.unpack_from(self._buffer)
            if head + ids > MOST:
                raise ValueError(f"a frame of {head + ids} bytes, more than {MOST}: front and worker have lost step")
            start, end = _HEADER.size, _HEADER.size + head + ids
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[start:end])
            del self._buffer[:end]
            yield orjson.loads(frame[:head]), frame[head:]
