"""The prefix cache: an index of tokens (`engine.radix`) over a pool of blocks (`engine.blocks`)."""

from __future__ import annotations

import torch

from engine.blocks import BLOCK, BlockPool
from engine.live import Live
from engine.prefix import Shape
from engine.radix import Node, RadixIndex


class PrefixCache:
    """Keys and values of up to `tokens` tokens, in blocks of `block`; the ones unused for longest make room."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, tokens: int, block: int = BLOCK) -> None:
        self.pool = BlockPool(shape, dtype, device, tokens // block, block)
        self.index = RadixIndex(self.pool)

    def known(self, key: bytes) -> int:
        """Tokens of `key` that are cached."""
        return self.index.match(key).tokens

    def load(self, key: bytes, most: int, live: Live) -> Node | None:
        """Copy the cached part of `key`, at most `most` tokens, to the start of `live`; its node, pinned."""
        match = self.index.match(key)
        live.length = min(match.tokens, most)
        if not live.length:
            return None
        self.pool.load(self.index.spans(match, live.length), live)
        self.index.pin(match.node)
        return match.node

    def save(self, key: bytes, live: Live) -> Node | None:
        """Add the tokens of `key`, which are those of `live`; the new node, pinned, if something was added."""
        new = self.index.insert(key)
        if new is None:
            return None
        self.pool.save(live, new.start, new.span)
        self.index.pin(new.node)
        return new.node
