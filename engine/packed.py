"""One forward pass for many sequences at different places: tokens of all of them in one row, without padding.

A prompt's chunk and the newest token of every running sequence go through the model's matrices together; only the
attention tells them apart. Single tokens attend slab by slab (`engine.live`), chunks one by one. Logits are computed
where they are asked for, of a prompt at its last token alone.

Models that must use their own attention (`engine.load`, and a probe here) run one sequence after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, Cache

from engine.batch import using_attention
from engine.cache import KVTree
from engine.live import LEAST, Live, LiveStore, Slab

NAME = "acorn_packed"
"""Under which transformers' AttentionInterface knows `attend`."""

QUERIES = 256
"""Of a chunk that attend at once under a mask, which has so many rows, whatever the chunk."""
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""What SDPA calls on a CPU. By this name it gives the scores' log-sum-exp, too, for which there is no public way."""


@dataclass(frozen=True)
class Piece:
    """The next tokens of one sequence."""

    live: Live
    """Has room for them."""
    ids: Sequence[int]
    wanted: bool
    """Logits of the last one."""


class Packed:
    """Forward passes of a tree's model over pieces."""

    def __init__(self, tree: KVTree) -> None:
        self._model, self._device, self._dtype, self._keeps = tree.model, tree.device, tree.dtype, tree.keeps
        self._causal = torch.zeros(0, 0, dtype=self._dtype, device=self._device)
        on_cpu = _FLASH is not None and self._device.type == "cpu"
        self._masked = not on_cpu or tree.shape.key_dim != tree.shape.value_dim
        AttentionInterface.register(NAME, attend)
        self.plain = tree.plain
        """The model uses its own attention."""
        self.plain = self.plain or not _is_right(self, tree)

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """Run all pieces, lengthen their sequences; float32 logits of the wanted ones, in order, [wanted, V]."""
        if self.plain:
            outputs = [self._alone(piece) for piece in pieces]
            wanted = [out for out, piece in zip(outputs, pieces, strict=True) if piece.wanted]
            logits = torch.cat(wanted) if wanted else outputs[0][:0]
        else:
            logits = self._together(pieces)
        for piece in pieces:
            piece.live.length += len(piece.ids)
        return logits.float()

    def _together(self, pieces: Sequence[Piece]) -> Tensor:
        # Rows of a slab one after the other, so that they are read as a view; slabs in an order that the same requests
        # give again, since a matrix product may round by a row's place.
        slabs: dict[Slab, int] = {}
        for piece in pieces:
            slabs.setdefault(piece.live.slab, len(slabs))
        order = sorted(range(len(pieces)), key=lambda i: _place(pieces[i], slabs))
        turn = _Turn([pieces[i] for i in order], self._causal_mask if self._masked else None)
        last = {i: end - 1 for i, end in zip(order, turn.ends, strict=True)}
        wanted = [last[i] for i, piece in enumerate(pieces) if piece.wanted]
        # At least one, because 0 would mean all.
        at = torch.tensor(wanted or [turn.ends[-1] - 1], device=self._device)
        with using_attention(self._model.config, NAME):
            output = self._model(
                input_ids=torch.tensor([turn.ids], device=self._device),
                position_ids=torch.tensor([turn.positions], device=self._device),
                attention_mask=None,
                past_key_values=turn,
                use_cache=True,
                acorn_packed=turn,
                **({"logits_to_keep": at} if self._keeps else {}),
            )
        logits: Tensor = output.logits[0] if self._keeps else output.logits[0, at]
        return logits[: len(wanted)]

    def _alone(self, piece: Piece) -> Tensor:
        """[1, V]"""
        start, count = piece.live.length, len(piece.ids)
        output = self._model(
            input_ids=torch.tensor([list(piece.ids)], device=self._device),
            position_ids=torch.arange(start, start + count, device=self._device)[None],
            attention_mask=self._causal_mask(count, start + count)[None, None],
            past_key_values=_Alone(piece.live, count),
            use_cache=True,
            **({"logits_to_keep": 1} if self._keeps else {}),
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _causal_mask(self, count: int, total: int) -> Tensor:
        """[count, total], added to the scores: the last `count` of `total` tokens do not see those after them.

        A corner of one mask, which is kept: made anew for each chunk it would cost a tenth of a long prompt's time.
        """
        rows, columns = self._causal.shape
        if count > rows or total > columns:
            rows, columns = max(rows, count), max(columns, total + total // 4)
            self._causal = torch.zeros(rows, max(rows, columns), dtype=self._dtype, device=self._device)
            later = torch.ones(rows, rows, dtype=torch.bool, device=self._device).triu_(1)
            self._causal[:, -rows:].masked_fill_(later, torch.finfo(self._dtype).min)
            rows, columns = self._causal.shape
        return self._causal[rows - count :, columns - total :]


@dataclass(frozen=True)
class _Single:
    """Neighbouring rows of a slab, one new token each: tokens `start` to `start + count` of the pass."""

    slab: Slab
    first: int
    count: int
    start: int
    rows: Tensor
    columns: Tensor
    """Where the new tokens go."""
    seen: int
    """Columns of the longest."""
    mask: Tensor | None
    """[rows, 1, 1, seen]"""


@dataclass(frozen=True)
class _Chunk:
    """Several new tokens of one sequence: tokens `start` to `start + count` of the pass."""

    live: Live
    start: int
    count: int
    masks: list[Tensor]
    """[queries, seen] for each `QUERIES` of them; none for the first chunk, and where chunks attend in two halves."""


class _Turn(Cache):  # type: ignore[misc]
    """One pass: the cache that the model writes to, and what the attention reads."""

    def __init__(self, pieces: Sequence[Piece], causal_mask: Any) -> None:
        super().__init__(layers=[])
        self.ids = [token for piece in pieces for token in piece.ids]
        self.positions = [piece.live.length + i for piece in pieces for i in range(len(piece.ids))]
        self.ends: list[int] = []
        end = 0
        for piece in pieces:
            end += len(piece.ids)
            self.ends.append(end)
        self.parts: list[_Single | _Chunk] = []
        at = index = 0
        while index < len(pieces):
            piece = pieces[index]
            count = len(piece.ids)
            if count == 1:
                run = _neighbours(pieces, index)
                self.parts.append(_single(run, at))
                index, at = index + len(run), at + len(run)
                continue
            before = piece.live.length
            masks = [
                causal_mask(min(QUERIES, count - start), before + min(start + QUERIES, count))
                for start in range(0, count if before and causal_mask else 0, QUERIES)
            ]
            self.parts.append(_Chunk(piece.live, at, count, masks))
            index, at = index + 1, at + count

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the new columns [1, heads, tokens, dim] in place."""
        for part in self.parts:
            new = slice(part.start, part.start + part.count)
            slab = part.slab if isinstance(part, _Single) else part.live.slab
            for block, states in ((slab.keys[layer_idx], key_states), (slab.values[layer_idx], value_states)):
                if isinstance(part, _Single):
                    block[part.rows, :, part.columns] = states[0, :, new].transpose(0, 1)
                else:
                    at = part.live.length
                    block[part.live.row, :, at : at + part.count] = states[0, :, new]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return len(self.ids), 0


class _Alone(Cache):  # type: ignore[misc]
    """The cache of a pass over one sequence, for a model's own attention."""

    def __init__(self, live: Live, count: int) -> None:
        super().__init__(layers=[])
        self._live, self._count = live, count

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        slab, row, start = self._live.slab, self._live.row, self._live.length
        end = start + self._count
        slab.keys[layer_idx, row, :, start:end] = key_states[0]
        slab.values[layer_idx, row, :, start:end] = value_states[0]
        return slab.keys[layer_idx, row : row + 1, :, :end], slab.values[layer_idx, row : row + 1, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._live.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._live.length + self._count, 0


def attend(
    module: Any,
    query_1HND: Tensor,
    keys_1hND: Tensor,
    values_1hND: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    acorn_packed: _Turn | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a transformers attention layer calls; [1, N, H, D], and no attention weights.

    `engine.load` has found out that the model asks for plain attention and passes keyword arguments on.
    """
    assert acorn_packed is not None
    H, D = query_1HND.shape[1], query_1HND.shape[3]
    heads = keys_1hND.shape[1]
    scale = D**-0.5 if scaling is None else scaling
    query_hGND = query_1HND[0].view(heads, H // heads, -1, D)
    outs = []
    for part in acorn_packed.parts:
        query = query_hGND[:, :, part.start : part.start + part.count]
        one = _attend_singles if isinstance(part, _Single) else _attend_chunk
        outs.append(one(query, part, module.layer_idx, scale))  # type: ignore[arg-type]
    out_NHD = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out_NHD[None], None


def _attend_singles(query_hGBD: Tensor, part: _Single, layer: int, scale: float) -> Tensor:
    """[B, H, D]; queries on one key-value head are rows of one matrix."""
    rows = slice(part.first, part.first + part.count)
    keys_BhTD = part.slab.keys[layer, rows, :, : part.seen]
    values_BhTD = part.slab.values[layer, rows, :, : part.seen]
    query_BhGD = query_hGBD.permute(2, 0, 1, 3)
    out = F.scaled_dot_product_attention(query_BhGD, keys_BhTD, values_BhTD, attn_mask=part.mask, scale=scale)
    return out.flatten(1, 2)


def _attend_chunk(query_hGND: Tensor, part: _Chunk, layer: int, scale: float) -> Tensor:
    """[N, H, D]; key-value heads are the batch, so that no query head needs a copy of its keys."""
    live = part.live
    G, seen = query_hGND.shape[1], live.length + part.count
    keys_hGTD = live.slab.keys[layer, live.row, :, None, :seen].expand(-1, G, -1, -1)
    values_hGTD = live.slab.values[layer, live.row, :, None, :seen].expand(-1, G, -1, -1)
    if not part.masks:
        if not live.length:
            out = F.scaled_dot_product_attention(query_hGND, keys_hGTD, values_hGTD, is_causal=True, scale=scale)
        else:
            out = _attend_halves(query_hGND, keys_hGTD, values_hGTD, live.length, scale)
        return out.flatten(0, 1).transpose(0, 1)
    outs, start = [], 0
    for mask in part.masks:
        count, seen = mask.shape
        query = query_hGND[:, :, start : start + count]
        keys, values = keys_hGTD[:, :, :seen], values_hGTD[:, :, :seen]
        outs.append(F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale))
        start += count
    return torch.cat(outs, 2).flatten(0, 1).transpose(0, 1)


def _attend_halves(query: Tensor, keys: Tensor, values: Tensor, before: int, scale: float) -> Tensor:
    """Attention of a chunk to the `before` tokens ahead of it and to its own, brought together by their log-sum-exp.

    Neither half needs a mask, which is a seventh of the time of attention (benchmarks/chunk_attention.py).
    """
    assert _FLASH is not None
    past, past_sum = _FLASH(query, keys[:, :, :before], values[:, :, :before], 0.0, False, scale=scale)
    own, own_sum = _FLASH(query, keys[:, :, before:], values[:, :, before:], 0.0, True, scale=scale)
    share = torch.sigmoid(past_sum - own_sum)[..., None]
    return torch.lerp(own.float(), past.float(), share).to(own.dtype)


def _is_right(packed: Packed, tree: KVTree) -> bool:
    """Whether two sequences come out as in the tree (`engine.load` has compared that with plain forward passes)."""
    size = min(9, tree.context - 1)
    half = size // 2
    vocab = tree.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocab, (2 * size + 2,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [ids[: size + 1], ids[-half - 1 :]]
    expected = tree.extend([None, None], rows)[0][:, 0].float()
    store = LiveStore(tree.shape, tree.dtype, tree.device, 8 * LEAST)
    lives = [live for _ in rows if (live := store.take(size + 1)) is not None]
    for cuts in ([(0, 0, half)], [(0, half, size), (1, 0, half)], [(0, size, size + 1), (1, half, half + 1)]):
        found = packed.run([Piece(lives[row], rows[row][start:end], True) for row, start, end in cuts])
    rounding = max(1e-4, 8 * torch.finfo(tree.dtype).eps) * expected.abs().max()
    return bool((found - expected).abs().max() <= rounding)


def _place(piece: Piece, slabs: dict[Slab, int]) -> tuple[bool, int, int]:
    return len(piece.ids) > 1, slabs[piece.live.slab], piece.live.row


def _neighbours(pieces: Sequence[Piece], index: int) -> list[Piece]:
    """Pieces of one token from `index` on, in consecutive rows of one slab."""
    run = [pieces[index]]
    for piece in pieces[index + 1 :]:
        before = run[-1].live
        if len(piece.ids) > 1 or piece.live.slab is not before.slab or piece.live.row != before.row + 1:
            break
        run.append(piece)
    return run


def _single(run: Sequence[Piece], start: int) -> _Single:
    slab, first = run[0].live.slab, run[0].live.row
    lengths = [piece.live.length for piece in run]
    seen = max(lengths) + 1
    device = slab.keys.device
    columns = torch.tensor(lengths, device=device)
    mask = None
    if min(lengths) + 1 < seen:
        later = torch.arange(seen, device=device) > columns[:, None]
        mask = slab.keys.new_zeros(len(run), 1, 1, seen)
        mask.masked_fill_(later[:, None, None], torch.finfo(mask.dtype).min)
    rows = torch.arange(first, first + len(run), device=device)
    return _Single(slab, first, len(run), start, rows, columns, seen, mask)
