"""A tree of computed prefixes over one model: extend many sequences by different numbers of tokens, fork for nothing.

`KVTree` is what the torch engine and the PRM verifier stand on. A `Prefix` is an immutable handle of computed tokens:
using it twice forks it, dropping it frees it, and sequences that share a prompt share its memory.

    tree = load_tree(model)                                           # engine.load
    hidden, prefixes = tree.extend([None, None], [[5, 6, 7], [8, 9]]) # open: None is the empty sequence
    a, b = prefixes
    hidden, more = tree.extend([a, a, b], [[1], [2, 3], [4]])         # fork `a`, extend by steps of any lengths

`hidden` is the model's `logits` if it has some, else its `last_hidden_state` [rows, last, width]: of the last token
of each row (`last=1`), or of the last few. For a head of your own, make the tree of the backbone
(`load_tree(model.model)`) and apply the head to what comes back, under `torch.inference_mode()`.

Working memory is bounded: `extend` splits its rows so that a forward pass runs at most `chunk` tokens and the batch
holds at most `positions` cache positions (rows times the longest row, or, where prompts are shared, rows times the
longest tail, plus the prompts); while it grows, half as many again. Prefixes themselves are
held until dropped: `bytes_per_position` times their tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from engine.batch import ROOM, Batch, pays
from engine.prefix import Prefix, Shape, Store

CHUNK = 2048
"""Tokens of one forward pass of `extend`."""
ROWS = 256
"""Rows of one batch."""
SHARE = 0.25
"""Of the free memory that the batch may take when no limit is given."""


class KVTree:
    """Batched forward passes of `model` over prefixes. Not for several threads."""

    def __init__(
        self,
        model: Any,
        shape: Shape,
        plain: bool,
        context: int,
        positions: int | None = None,
        rows: int = ROWS,
        chunk: int = CHUNK,
    ) -> None:
        self.model, self.shape, self.plain, self.context = model, shape, plain, context
        self.device, self.dtype = model.device, model.dtype
        self.rows, self.chunk = rows, chunk
        self.bytes_per_position = shape.bytes_per_position(self.dtype)
        self.positions = positions or int(free_memory(self.device) * SHARE) // self.bytes_per_position
        self._store = Store(shape, self.dtype, self.device)
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def extend(
        self, prefixes: Sequence[Prefix | None], ids: Sequence[Sequence[int]], last: int = 1
    ) -> tuple[Tensor, list[Prefix]]:
        """Run each row's new tokens through the model, only those.

        Returns the model's output at the last `last` tokens of each row, [rows, last, width] (rows with fewer new
        tokens than that are padded at the left with what is meaningless), and each row's prefix with them.
        Raises ValueError for a row without new tokens or over the context, MemoryError for one too long for the batch.
        """
        for index, (prefix, row) in enumerate(zip(prefixes, ids, strict=True)):
            if not len(row):
                raise ValueError(f"row {index} has no new tokens; leave it out")
            if (total := len(row) + (prefix.length if prefix else 0)) > self.context:
                raise ValueError(f"row {index} grows to {total} tokens, the context has {self.context}; cut it")
        outputs: dict[int, Tensor] = {}
        extended: dict[int, Prefix] = {}
        for part in self._parts(prefixes, ids):
            output, new = self._extend([prefixes[i] for i in part], [ids[i] for i in part], last)
            outputs |= zip(part, output.unbind(0), strict=True)
            extended |= zip(part, new, strict=True)
        # A part is as wide as its longest row, so parts may differ.
        width = max((len(output) for output in outputs.values()), default=0)
        rows = [torch.nn.functional.pad(outputs[i], (0, 0, width - len(outputs[i]), 0)) for i in range(len(ids))]
        return torch.stack(rows), [extended[i] for i in range(len(ids))]

    def batch(self, prefixes: Sequence[Prefix | None], most: int | None = None) -> Batch:
        """A batch to feed token by token, by at most `most` tokens. The one made before must not be used any more."""
        return Batch(self._store, prefixes, self.plain, most)

    def run(self, batch: Batch, ids_BN: Tensor, pads: Sequence[int] | None = None, last: int = 1) -> Tensor:
        """Feed a batch (see `Batch.feed`): logits, or else hidden states, of the newest tokens, [B, last, width].

        Models with a language head compute logits of those alone.
        """
        try:
            output = batch.feed(self.model, ids_BN, pads, **({"logits_to_keep": last} if self.keeps else {}))
        except torch.OutOfMemoryError as error:
            error.add_note(f"limits are positions={self.positions}, rows={self.rows}, chunk={self.chunk}: lower them")
            raise
        values: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
        return values[:, -last:]

    def split(self, prefixes: Sequence[Prefix | None], new: Sequence[int]) -> list[list[int]]:
        """Indices of the rows that may run together when each grows by up to `new`, in the given order.

        Raises MemoryError if one row alone is too long.
        """
        parts: list[list[int]] = []
        size = _Size(self.plain)
        for index, (prefix, more) in enumerate(zip(prefixes, new, strict=True)):
            alone = _Size(self.plain).with_row(prefix, more)
            if alone.positions > self.positions:
                raise MemoryError(
                    f"a sequence of {alone.longest} tokens needs {alone.positions} cache positions, {self.positions}"
                    f" are allowed ({self.bytes_per_position} bytes each); raise the limit `positions`"
                )
            together = size.with_row(prefix, more)
            if parts and together.rows <= self.rows and together.positions <= self.positions:
                parts[-1].append(index)
                size = together
            else:
                parts.append([index])
                size = alone
        return parts

    def _parts(self, prefixes: Sequence[Prefix | None], ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows that share forward passes: of like numbers of new tokens, so that little of a pass is padding."""
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        alike: list[list[int]] = []
        for index in order:
            longest = len(ids[alike[-1][0]]) if alike else 0
            fits = alike and (len(alike[-1]) + 1) * min(longest, self.chunk) <= self.chunk
            if fits and longest <= 2 * len(ids[index]) + 16:
                alike[-1].append(index)
            else:
                alike.append([index])
        parts = []
        for group in alike:
            sub = self.split([prefixes[i] for i in group], [len(ids[group[0]])] * len(group))
            parts += [[group[i] for i in indices] for indices in sub]
        return parts

    def _extend(
        self, prefixes: list[Prefix | None], ids: list[Sequence[int]], last: int
    ) -> tuple[Tensor, list[Prefix]]:
        longest = max(map(len, ids))
        batch = self.batch(prefixes, longest)
        ids_BN = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids], device=self.device)
        # A pass at the start of `longest` may be short, so that the last one holds at least `last` tokens.
        width = max(self.chunk // len(ids), last, 1)
        starts = list(range(longest - width, 0, -width))[::-1]
        for start, end in zip([0, *starts], [*starts, longest], strict=True):
            pads = [min(end - start, max(0, longest - len(row) - start)) for row in ids]
            output = self.run(batch, ids_BN[:, start:end], pads, last if end == longest else 1)
        return output, [batch.save(row, len(new)) for row, new in enumerate(ids)]


@dataclass(frozen=True)
class _Size:
    """Of a batch that rows are added to."""

    plain: bool
    rows: int = 0
    longest: int = 0
    """Tokens of the longest row, with what it may grow by,"""
    longest_tail: int = 0
    """and without its trunk."""
    trunk_tokens: int = 0
    """Summed over rows."""
    trunks: frozenset[int] = frozenset()
    longest_trunk: int = 0
    fresh: bool = False
    """A row starts from nothing."""

    def with_row(self, prefix: Prefix | None, more: int) -> _Size:
        trunk = 0 if prefix is None else len(prefix.trunk)
        length = more if prefix is None else more + prefix.length
        return _Size(
            self.plain,
            self.rows + 1,
            max(self.longest, length),
            max(self.longest_tail, length - trunk),
            self.trunk_tokens + trunk,
            self.trunks if prefix is None else self.trunks | {id(prefix.trunk)},
            max(self.longest_trunk, trunk),
            self.fresh or prefix is None,
        )

    @property
    def positions(self) -> int:
        """Cache positions, as `Batch` lays them out."""
        shared = len(self.trunks) * self.longest_trunk
        if self.plain or self.fresh or not pays(shared, self.trunk_tokens):
            return self.rows * (self.longest + ROOM)
        return self.rows * (self.longest_tail + ROOM) + shared


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
