"""Keys and values: of a sequence between calls (`Prefix`), and the memory in which a batch has them (`Store`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Segment:
    """Keys and values of consecutive tokens; never changed, so that any number of sequences can share it."""

    keys: Tensor
    """[layers, heads, tokens, key_dim]"""
    values: Tensor
    """[layers, heads, tokens, value_dim]"""

    def __len__(self) -> int:
        return int(self.keys.shape[2])


@dataclass(frozen=True, eq=False)
class Prefix:
    """Computed tokens of a sequence, immutable: to fork it, use it twice; to free it, drop it."""

    trunk: Segment
    """The prompt, or what was first run: shared by all that continues it."""
    tail: tuple[Segment, ...] = ()
    """What came after it, oldest first."""
    length: int = 0
    """Tokens in trunk and tail."""

    def followed_by(self, keys: Tensor, values: Tensor) -> Self:
        """With the tokens of `keys` and `values` [layers, heads, new, dim] at the end; they are copied.

        Segments not longer than what follows them are merged into it, so that a sequence of n tokens is never in more
        than about log2(n) pieces, however often it was stopped.
        """
        new = count = keys.shape[2]
        kept = len(self.tail)
        while kept and len(self.tail[kept - 1]) <= count:
            kept -= 1
            count += len(self.tail[kept])
        merged = self.tail[kept:]
        piece = Segment(
            torch.cat([*(segment.keys for segment in merged), keys], 2),
            torch.cat([*(segment.values for segment in merged), values], 2),
        )
        return type(self)(self.trunk, (*self.tail[:kept], piece), self.length + new)

    def as_trunk(self) -> Self:
        """The same tokens, all of them in the trunk: for a prompt that was run in pieces. They are copied."""
        segments = (self.trunk, *self.tail)
        keys, values = torch.cat([one.keys for one in segments], 2), torch.cat([one.values for one in segments], 2)
        return type(self)(Segment(keys, values), (), self.length)


@dataclass(frozen=True)
class Shape:
    """Of a model's key-value cache."""

    layers: int
    heads: int
    key_dim: int
    value_dim: int

    def bytes_per_position(self, dtype: torch.dtype) -> int:
        return self.layers * self.heads * (self.key_dim + self.value_dim) * dtype.itemsize


class Store:
    """The memory of a batch, kept for the next one: pages already touched are several times faster to write."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._flat = {"keys": self._empty(0), "values": self._empty(0)}

    def take(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, rows, heads, columns, dim], uninitialised; what was taken before is void."""
        return self._view("keys", rows, columns, self.shape.key_dim), self._view(
            "values", rows, columns, self.shape.value_dim
        )

    def grow(self, keys: Tensor, values: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Copies of what was taken, with more columns."""
        rows, used = keys.shape[1], keys.shape[3]
        self._flat = {"keys": self._empty(0), "values": self._empty(0)}  # the old ones live on in keys and values
        grown = self.take(rows, columns)
        for new, old in zip(grown, (keys, values), strict=True):
            new[:, :, :, :used] = old
        return grown

    def _view(self, name: str, rows: int, columns: int, dim: int) -> Tensor:
        size = (self.shape.layers, rows, self.shape.heads, columns, dim)
        count = size[0] * rows * size[2] * columns * dim
        if self._flat[name].numel() < count:
            self._flat[name] = self._empty(0)  # free the old before taking the new
            self._flat[name] = self._empty(count)
        return self._flat[name][:count].view(size)

    def _empty(self, count: int) -> Tensor:
        return torch.empty(count, dtype=self.dtype, device=self.device)
