"""Keys and values of running sequences: each one's are contiguous, written in place and read as a view.

Rows of like length lie side by side in a slab of `SLAB` positions: 32 rows of 64, or 2 of 1,024. A decode step makes
one attention call for each slab, so padding is at most half of a row and a call has work worth its overhead. A row
that outgrows its slab moves (at doubled size: two copies a token at most); a longer one has a slab to itself.

Memory is bounded: slabs hold at most `tokens` positions together, also those kept for the next sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.prefix import Shape

SLAB = 2048
"""Positions of a slab that rows share."""
LEAST = 64
"""Positions of the shortest rows."""


@dataclass(eq=False)
class Slab:
    """`room` rows of `columns` positions; those in use come first."""

    keys: Tensor
    """[layers, rows, heads, columns, key_dim]"""
    values: Tensor
    """[layers, rows, heads, columns, value_dim]"""
    rows: list[Live] = field(default_factory=list)

    @property
    def room(self) -> int:
        return int(self.keys.shape[1])

    @property
    def columns(self) -> int:
        return int(self.keys.shape[3])


@dataclass(eq=False)
class Live:
    """One sequence: columns 0 to `length` of a row."""

    slab: Slab
    row: int
    length: int = 0

    @property
    def keys(self) -> Tensor:
        """[layers, heads, columns, key_dim], as long as the sequence does not move."""
        return self.slab.keys[:, self.row]

    @property
    def values(self) -> Tensor:
        return self.slab.values[:, self.row]

    @property
    def finite(self) -> bool:
        """Whether its tokens ran without nan and infinity: the last layer tells, which is made of all the others."""
        last = (block[-1, self.row, :, : self.length] for block in (self.slab.keys, self.slab.values))
        return all(bool(part.isfinite().all()) for part in last)


class LiveStore:
    """Places for sequences of up to `tokens` positions (at least `LEAST`) together. Not for several threads."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, tokens: int, slab: int = SLAB) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.tokens, self.slab = tokens, LEAST
        while self.slab < min(slab, tokens // 2):
            self.slab *= 2
        self._slabs: list[Slab] = []
        self._spare: list[Slab] = []  # oldest first; pages already touched are several times faster to write

    @property
    def longest(self) -> int:
        """Positions that a sequence alone may have."""
        return self.tokens // (self.slab // 2) * (self.slab // 2)

    @property
    def used(self) -> int:
        """Positions of the slabs in use, free rows included."""
        return sum(slab.room * slab.columns for slab in self._slabs)

    def take(self, need: int) -> Live | None:
        """A place for `need` tokens; None if there is none now. Raises ValueError for one that can never be."""
        if need > self.longest:
            raise ValueError(f"a sequence of {need} tokens; all together may have {self.longest}: raise `tokens`")
        columns = self._columns(need)
        slab = next((one for one in self._slabs if one.columns == columns and len(one.rows) < one.room), None)
        slab = slab or self._open(columns)
        if slab is None:
            return None
        live = Live(slab, len(slab.rows))
        slab.rows.append(live)
        return live

    def free(self, live: Live) -> None:
        """Give the place back. What is not finite is wiped out: it would reach neighbours through their masks."""
        slab = live.slab
        if not live.finite:
            _wipe(slab, live.row)
        last = slab.rows.pop()
        if last is not live:
            for block in (slab.keys, slab.values):
                block[:, live.row, :, : last.length] = block[:, last.row, :, : last.length]
            if not last.finite:
                _wipe(slab, last.row)
            slab.rows[live.row] = last
            last.row = live.row
        if not slab.rows:
            self._slabs.remove(slab)
            self._spare.append(slab)

    def grow(self, live: Live, need: int, ample: int) -> bool:
        """Make room for `need` tokens; a longer place has `ample`. False without memory for the old and the new one."""
        if need <= live.slab.columns:
            return True
        new = self.take(ample)
        if new is None:
            return False
        new.keys[:, :, : live.length] = live.keys[:, :, : live.length]
        new.values[:, :, : live.length] = live.values[:, :, : live.length]
        old = Live(live.slab, live.row, live.length)
        old.slab.rows[old.row] = old
        live.slab, live.row = new.slab, new.row
        live.slab.rows[live.row] = live
        self.free(old)
        return True

    def _columns(self, need: int) -> int:
        """Positions of a row that holds `need` tokens."""
        half = self.slab // 2
        if need > half:
            return max(self.slab, -(-need // half) * half)
        columns = min(LEAST, half)
        while columns < need:
            columns *= 2
        return columns

    def _open(self, columns: int) -> Slab | None:
        """An empty slab, of kept memory if some has the size; None over the limit."""
        size = max(columns, self.slab)
        spare = next((slab for slab in reversed(self._spare) if slab.room * slab.columns == size), None)
        if spare is not None:
            self._spare.remove(spare)
        while self._spare and self.used + size + sum(one.room * one.columns for one in self._spare) > self.tokens:
            self._spare.pop(0)
        if self.used + size > self.tokens:
            return None
        rows = max(1, self.slab // columns)
        sizes = [(self.shape.layers, rows, self.shape.heads, columns, dim) for dim in self._dims]
        if spare is not None:
            keys, values = (old.view(new) for old, new in zip((spare.keys, spare.values), sizes, strict=True))
        else:  # zeros: masked columns are multiplied by 0, and nan x 0 is nan
            keys, values = (torch.zeros(size, dtype=self.dtype, device=self.device) for size in sizes)
        slab = Slab(keys, values)
        self._slabs.append(slab)
        return slab

    @property
    def _dims(self) -> tuple[int, int]:
        return self.shape.key_dim, self.shape.value_dim


def _wipe(slab: Slab, row: int) -> None:
    slab.keys[:, row] = 0
    slab.values[:, row] = 0
