"""Sequences that run through a model together: their keys and values in one block, written in place.

Rows are aligned at their newest token, so that a decode step writes one column for all of them and reads a view:
nothing is copied per token. What a row does not have is masked, positions are explicit. Keys and values of a prompt
that several rows share are read from one place (`engine.attention`). A row that leaves is replaced by the last one, so
the block stays contiguous; it grows by half at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from engine.attention import NAME, Trunks
from engine.prefix import Prefix, Segment, Store

ROOM = 64
"""Columns made free at the start and added at least."""


class Batch:
    """Rows that run together. Use one batch of a store at a time; call under `torch.inference_mode()`.

    `plain` is for models that must use their own attention: every row then holds its trunk itself.
    """

    def __init__(self, store: Store, prefixes: Sequence[Prefix | None], plain: bool, most: int | None = None) -> None:
        self._store, self._plain = store, plain
        self._prefixes = list(prefixes)
        groups = [] if plain else _shared(self._prefixes)
        pieces = [_pieces(prefix, bool(groups)) for prefix in self._prefixes]
        lengths = [sum(map(len, row)) for row in pieces]
        self._start, self._column = 0, max(lengths)
        self._pads = [self._column - length for length in lengths]
        self._most = None if most is None else self._column + most
        self._keys, self._values = store.take(len(pieces), self._column + min(ROOM, most or ROOM))
        self._fill(pieces)
        # The smallest number instead of -inf: a row that sees nothing yet must not become nan.
        self._hidden = torch.finfo(store.dtype).min
        self._mask_BT = self._keys.new_zeros(len(pieces), self._keys.shape[3])
        for row, pad in enumerate(self._pads):
            self._mask_BT[row, :pad] = self._hidden
        self._holes = False  # padding was fed
        self._positions = torch.tensor([prefix.length if prefix else 0 for prefix in prefixes], device=store.device)
        self.causal = False
        self._mask: Tensor | None = None
        self._folded: dict[int, Tensor | None] = {}
        self._groups = groups
        self._trunk_block: tuple[Tensor, Tensor] | None = None
        self.trunks: Trunks | None = None
        self._set_views()
        self._set_trunks()

    def __len__(self) -> int:
        return len(self._prefixes)

    def feed(self, model: Any, ids_BN: Tensor, pads: Sequence[int] | None = None, **options: Any) -> Any:
        """Run the next N tokens of every row; the model's output. `pads`: how many of them are padding, at the left.

        Padding costs time only: nothing attends to it, and the row's positions go on without it. Repeated calls with
        padding must put all of it before a row's first token.
        """
        count = ids_BN.shape[1]
        self._make_room(count)
        positions_BN = self._positions[:, None]
        if count > 1:
            positions_BN = positions_BN + torch.arange(count, device=self._store.device)
        self._positions = self._positions + count
        if pads is not None and any(pads):
            shift_B = torch.tensor(pads, device=self._store.device)
            positions_BN = (positions_BN - shift_B[:, None]).clamp(min=0)
            self._positions -= shift_B
            for row, pad in enumerate(pads):
                self._mask_BT[row, self._column : self._column + pad] = self._hidden
            self._holes = True
        self._look_at(count)
        with using_attention(model.config, None if self._plain else NAME):
            output = model(
                input_ids=ids_BN,
                position_ids=positions_BN,
                attention_mask=self._mask if self._plain else None,
                past_key_values=_Writer(self, self._column, count),
                use_cache=True,
                **({} if self._plain else {"acorn_batch": self}),
                **options,
            )
        self._column += count
        return output

    def save(self, row: int, new: int) -> Prefix:
        """What the row was made from, and the last `new` tokens that ran through the model since."""
        prefix = self._prefixes[row]
        if not new and prefix is not None:
            return prefix
        keys = self._keys[:, row, :, self._column - new : self._column]
        values = self._values[:, row, :, self._column - new : self._column]
        if prefix is None:
            return Prefix(Segment(keys.clone(), values.clone()), (), new)
        return prefix.followed_by(keys, values)

    def drop(self, leaving: Sequence[int]) -> list[int]:
        """Remove rows. Row i is then what was row `order[i]` of the returned order."""
        gone, left = set(leaving), len(self) - len(leaving)
        movers = [row for row in range(left, len(self)) if row not in gone]
        order = list(range(left))
        for row, mover in zip((row for row in range(left) if row in gone), movers, strict=True):
            order[row] = mover
            used = slice(self._start, self._column)
            self._keys[:, row, :, used] = self._keys[:, mover, :, used]
            self._values[:, row, :, used] = self._values[:, mover, :, used]
            self._mask_BT[row] = self._mask_BT[mover]
        if not left:
            return order
        self._prefixes = [self._prefixes[row] for row in order]
        self._pads = [self._pads[row] for row in order]
        self._start = min(self._pads)
        self._positions = self._positions[torch.tensor(order, device=self._store.device)]
        self._set_views()
        self._set_trunks()
        return order

    def mask_of(self, fold: int) -> Tensor | None:
        """The mask of the tokens now being fed, [B, 1, fold x N, T], for `fold` query heads on a key-value head."""
        if fold not in self._folded:
            one = self._mask is None or self._mask.shape[2] == 1
            self._folded[fold] = self._mask if one or fold == 1 else self._mask.repeat(1, 1, fold, 1)  # type: ignore[union-attr]
        return self._folded[fold]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put new columns in place; all columns of the layer so far."""
        count = keys.shape[2]
        all_keys, all_values = self._layers[layer]
        all_keys.narrow(2, start, count).copy_(keys)
        all_values.narrow(2, start, count).copy_(values)
        seen = start + count - self._start
        return all_keys.narrow(2, self._start, seen), all_values.narrow(2, self._start, seen)

    def _look_at(self, count: int) -> None:
        """Make the mask for `count` new columns."""
        several, masked = count > 1, self._holes or max(self._pads) > self._start
        self._mask, self._folded = None, {}
        self.causal = several and not (masked or self._plain or self._groups) and self._start == self._column
        if self.causal or not (several or masked or self._plain):
            return
        mask = self._mask_BT[: len(self), None, None, self._start : self._column + count]
        if several:
            mask = mask.repeat(1, 1, count, 1)
            later = torch.ones(count, count, dtype=torch.bool, device=mask.device).triu_(1)
            mask[..., -count:].masked_fill_(later, self._hidden)
        self._mask = mask

    def _make_room(self, count: int) -> None:
        needed, columns = self._column + count, self._keys.shape[3]
        if needed > columns:
            ample = columns + max(ROOM, columns // 2)
            more = max(needed, ample if self._most is None else min(ample, self._most))
            self._keys, self._values = self._store.grow(self._keys, self._values, more)
            self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, more - columns))
            self._set_views()

    def _set_views(self) -> None:
        count = len(self)
        self._layers = list(zip(self._keys[:, :count].unbind(0), self._values[:, :count].unbind(0), strict=True))

    def _fill(self, pieces: list[list[Segment]]) -> None:
        for row, segments in enumerate(pieces):
            at = self._pads[row]
            self._keys[:, row, :, :at] = 0  # masked, but nan x 0 would be nan
            self._values[:, row, :, :at] = 0
            for segment in segments:
                self._keys[:, row, :, at : at + len(segment)] = segment.keys
                self._values[:, row, :, at : at + len(segment)] = segment.values
                at += len(segment)

    def _set_trunks(self) -> None:
        """Lay the trunks that are still in use side by side, and note which rows use which."""
        if not self._groups:
            return
        trunks = [prefix.trunk for prefix in self._prefixes if prefix is not None]
        used = [group for group in self._groups if any(trunk is group for trunk in trunks)]
        if self._trunk_block is None or len(used) < len(self._groups):
            self._groups = used
            self._trunk_block = _side_by_side(used)
        index = {id(group): number for number, group in enumerate(used)}
        members: list[list[int]] = [[] for _ in used]
        trunk_of, slot_of = [], []
        for row, trunk in enumerate(trunks):
            group = members[index[id(trunk)]]
            trunk_of.append(index[id(trunk)])
            slot_of.append(len(group))
            group.append(row)
        widest = max(map(len, members))
        rows = [group + [0] * (widest - len(group)) for group in members]
        keys, values = self._trunk_block
        device = self._store.device
        self.trunks = Trunks(
            keys,
            values,
            _trunk_mask(used, keys),
            torch.tensor(rows, device=device),
            torch.tensor(trunk_of, device=device),
            torch.tensor(slot_of, device=device),
        )


class _Writer(Cache):  # type: ignore[misc]
    """The cache that a model sees during one `feed`."""

    def __init__(self, batch: Batch, column: int, count: int) -> None:
        super().__init__(layers=[])
        self._batch, self._column, self._count = batch, column, count

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._batch.write(layer_idx, self._column, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._column

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._column + self._count, 0


def _shared(prefixes: Sequence[Prefix | None]) -> list[Segment]:
    """The distinct trunks, if reading each once pays; else none."""
    trunks = [prefix.trunk for prefix in prefixes if prefix is not None]
    distinct = list({id(trunk): trunk for trunk in trunks}.values())
    if len(trunks) < len(prefixes) or not distinct:
        return []
    return distinct if pays(len(distinct) * max(map(len, distinct)), sum(map(len, trunks))) else []


def pays(shared: int, apart: int) -> bool:
    """Whether to read `shared` trunk tokens once instead of `apart` in the rows: a small gain is not worth the ops."""
    return 1.5 * shared <= apart


def _pieces(prefix: Prefix | None, shared: bool) -> list[Segment]:
    if prefix is None:
        return []
    return list(prefix.tail) if shared else [prefix.trunk, *prefix.tail]


def _side_by_side(trunks: list[Segment]) -> tuple[Tensor, Tensor]:
    """[layers, trunks, heads, longest, dim]; a single trunk is not copied."""
    if len(trunks) == 1:
        return trunks[0].keys[:, None], trunks[0].values[:, None]
    longest = max(map(len, trunks))
    blocks = []
    for parts in ([trunk.keys for trunk in trunks], [trunk.values for trunk in trunks]):
        layers, heads, _, dim = parts[0].shape
        block = parts[0].new_zeros(layers, len(parts), heads, longest, dim)
        for number, part in enumerate(parts):
            block[:, number, :, : part.shape[2]] = part
        blocks.append(block)
    return blocks[0], blocks[1]


def _trunk_mask(trunks: list[Segment], keys: Tensor) -> Tensor | None:
    longest = keys.shape[3]
    if all(len(trunk) == longest for trunk in trunks):
        return None
    mask = keys.new_zeros(len(trunks), 1, 1, longest)
    for number, trunk in enumerate(trunks):
        mask[number, ..., len(trunk) :] = torch.finfo(keys.dtype).min
    return mask


@contextmanager
def using_attention(config: Any, name: str | None) -> Any:
    """With another attention implementation; the model object is the caller's and gets its own back."""
    before = config._attn_implementation
    if name is not None:
        config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
