"""The prefix cache's memory: blocks of keys and values, made once, counted by those who hold them.

`Blocks` is the book: which blocks are free, and how many hold each of the others. `BlockPool` adds the tensors. Blocks
are handed out in runs of consecutive ones where there are some, so that a prefix is copied in few large pieces: 10,000
tokens in one run, or 625 in the worst case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from engine.live import Live
from engine.prefix import Shape

BLOCK = 16
"""Tokens of a block. A node of the index wastes at most one."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens in blocks: `count` of them, from the `offset`-th place of `blocks` on."""

    blocks: np.ndarray
    """Numbers of the blocks, int64."""
    offset: int
    count: int


class Blocks:
    """`count` blocks of `size` tokens. A block is free when nobody holds it."""

    def __init__(self, count: int, size: int = BLOCK) -> None:
        self.count, self.size = count, size
        self.holders = np.zeros(count, dtype=np.int64)
        """How many hold each block."""
        self._free = list(range(count))[::-1]

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def take(self, count: int) -> np.ndarray:
        """`count` free blocks, held once. Raises MemoryError if there are fewer."""
        if count > len(self._free):
            raise MemoryError(f"{count} blocks are asked for, {len(self._free)} of {self.count} are free; evict first")
        first = len(self._free) - count
        blocks = np.array(self._free[first:][::-1], dtype=np.int64)
        del self._free[first:]
        self.holders[blocks] = 1
        return blocks

    def hold(self, blocks: np.ndarray) -> None:
        """Once more."""
        assert (self.holders[blocks] > 0).all(), "a free block cannot be held"
        self.holders[blocks] += 1

    def drop(self, blocks: np.ndarray) -> int:
        """Once less; how many became free."""
        assert (self.holders[blocks] > 0).all(), "a block was dropped more often than it was held"
        self.holders[blocks] -= 1
        freed: list[int] = blocks[self.holders[blocks] == 0].tolist()
        self._free += freed[::-1]
        return len(freed)

    def runs(self, span: Span) -> list[tuple[int, int]]:
        """Places of a span: `(first, count)` of each run of consecutive ones, in order."""
        size = self.size
        first, last = span.offset // size, (span.offset + span.count - 1) // size
        blocks = span.blocks[first : last + 1]
        breaks = (np.flatnonzero(np.diff(blocks) != 1) + 1).tolist()
        runs, left, inside = [], span.count, span.offset % size
        for start, end in zip([0, *breaks], [*breaks, len(blocks)], strict=True):
            count = min(left, (end - start) * size - inside)
            runs.append((int(blocks[start]) * size + inside, count))
            left, inside = left - count, 0
        return runs


class BlockPool(Blocks):
    """Blocks with the keys and values of their tokens."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, count: int, size: int = BLOCK) -> None:
        super().__init__(count, size)
        sizes = [(shape.layers, shape.heads, count * size, dim) for dim in (shape.key_dim, shape.value_dim)]
        # Not written yet: on a CPU pages count only once they are.
        self._keys, self._values = (torch.empty(size, dtype=dtype, device=device) for size in sizes)

    def save(self, live: Live, start: int, span: Span) -> None:
        """Copy a sequence's tokens from `start` on into a span."""
        for place, count in self.runs(span):
            self._keys[:, :, place : place + count] = live.keys[:, :, start : start + count]
            self._values[:, :, place : place + count] = live.values[:, :, start : start + count]
            start += count

    def load(self, spans: Iterable[Span], live: Live) -> None:
        """Copy spans, one after the other, to the start of a sequence."""
        start = 0
        for span in spans:
            for place, count in self.runs(span):
                live.keys[:, :, start : start + count] = self._keys[:, :, place : place + count]
                live.values[:, :, start : start + count] = self._values[:, :, place : place + count]
                start += count
