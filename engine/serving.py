"""Many requests on one model at once: `ServingEngine`.

Every turn is one forward pass (`engine.packed`): the newest token of each running sequence, and at most `chunk` tokens
of prompts. So a long prompt holds up the others by one chunk at most, and short prompts do not wait for a long one.

Admission is by memory: a sequence gets a contiguous place (`engine.live`), the waiting ones are let in as places come
free, in the order they came. Places are no larger than what a sequence has and a little more, whatever `max_tokens`
says. When there is no memory to grow, the youngest sequence makes room: it waits again and later goes on with the same
tokens, since the token at a position is a function of logits, seed and position.

What has run through the model is kept in the prefix cache (`engine.prefixes`): a prompt as soon as it is done, prompt
and reply at the end. A request whose prefix is just being run for another waits for that instead of running it again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.blocks import BLOCK
from engine.cache import KVTree, free_memory
from engine.drawing import Ask, Drawn, draw_rows
from engine.interface import Finish
from engine.live import LEAST, Live, LiveStore
from engine.load import end_ids_in, load_model, load_tree
from engine.packed import Packed, Piece
from engine.prefixes import PrefixCache
from engine.radix import Node, as_key, common
from engine.requests import Event, Request, Stats
from engine.rules import check_prompts, check_sampling, check_stops, finish_of, limits_of

ROWS = 64
"""Sequences that run together."""
AHEAD = 64
"""Positions beyond what a sequence has when it gets its place, at least; less if it may not have as many."""
SHARE = 0.25
"""Of the free memory that running sequences may take when no limit is given; as much for the prefix cache."""


@dataclass(eq=False)
class _Row:
    """A request, waiting (`live` is None) or running."""

    handle: int
    request: Request
    ids: list[int]
    """Prompt and new tokens."""
    new: list[int] = field(default_factory=list)
    live: Live | None = None
    """Its keys and values: of the first `live.length` of `ids`."""
    key: bytes = b""
    """Of `ids` when it was queued."""
    pinned: Node | None = None
    """What of the prefix cache it came from or went to."""
    waits: tuple[_Row, int] | None = None
    """For another's first so many tokens."""
    cached: int | None = None
    told: bool = False
    """`cached` has been."""

    @property
    def rest(self) -> int:
        """Tokens to run before the next can be drawn; one, once the prompt is done."""
        assert self.live is not None
        return len(self.ids) - self.live.length


class ServingEngine:
    """`engine.requests` on transformers. Not for several threads.

    `device`, `dtype`, `context` and `end_ids` as for `engine.torch.TorchEngine`. `tokens`: positions that all running
    sequences may have together, the context at most; `cache_tokens`: those of the prefix cache (None: what a quarter
    of the free memory holds, each; no cache: 0), in blocks of `block`. `rows`: sequences that run together. `chunk`:
    prompt tokens of one turn. `ahead`: positions that a sequence gets beyond what it has, whatever it may grow to.
    Raises ValueError for a model that cannot be run so (`engine.load`), FileNotFoundError for an incomplete folder.
    """

    def __init__(
        self,
        model: Any,
        device: str = "auto",
        dtype: torch.dtype | str | None = None,
        context: int | None = None,
        end_ids: Iterable[int] | None = None,
        tokens: int | None = None,
        cache_tokens: int | None = None,
        rows: int = ROWS,
        chunk: int = 512,
        block: int = BLOCK,
        ahead: int = AHEAD,
    ) -> None:
        folder = Path(model) if isinstance(model, str | Path) else None
        self.model = (model if folder is None else load_model(folder, device, dtype)).eval()
        tree: KVTree = load_tree(self.model, context)
        self.bytes_per_token = tree.bytes_per_position
        share = max(LEAST, int(free_memory(tree.device) * SHARE) // self.bytes_per_token)
        tokens = share if tokens is None else tokens
        cache_tokens = share if cache_tokens is None else cache_tokens
        _check_sizes(
            ("tokens", tokens, LEAST), ("cache_tokens", cache_tokens, 0), ("rows", rows, 1), ("chunk", chunk, 1),
            ("block", block, 1), ("ahead", ahead, 1),
        )  # fmt: skip
        self._store = LiveStore(tree.shape, tree.dtype, tree.device, tokens)
        self._cache = PrefixCache(tree.shape, tree.dtype, tree.device, cache_tokens, block)
        self._packed = Packed(tree)
        self._rows, self._chunk, self._ahead = rows, chunk, ahead
        self._context = min(tree.context, self._store.longest)
        self._ends = frozenset(end_ids_in(self.model, folder) if end_ids is None else end_ids)
        self._vocab = int(self.model.get_input_embeddings().weight.shape[0])
        self._running: list[_Row] = []  # by handle, as is waiting
        self._waiting: list[_Row] = []
        self._handles = 0
        self._ran = self._generated = self._cached = 0

    @property
    def context(self) -> int:
        """Largest number of tokens of a sequence."""
        return self._context

    @property
    def vocab(self) -> int:
        """Ids are below this."""
        return self._vocab

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self._ends

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not (self._running or self._waiting)

    @property
    def stats(self) -> Stats:
        pool = self._cache.pool
        return Stats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks=pool.count,
            blocks_used=pool.used,
            block_tokens=pool.size,
            prompt_tokens=self._ran,
            cached_tokens=self._cached,
            generated_tokens=self._generated,
            evicted_blocks=self._cache.index.evicted,
        )

    def submit(self, request: Request) -> int:
        """Queue a request; its handle. Raises ValueError for one that cannot be run."""
        check_prompts([request.prompt], [request.seed], self._context, self._vocab)
        check_sampling(request.sampling, self._vocab)
        check_stops(request.stop)
        limits_of(request.max_tokens, 1)
        self._handles += 1
        key = as_key(request.prompt) if request.cache else b""
        self._waiting.append(_Row(self._handles, request, list(request.prompt), key=key))
        return self._handles

    @torch.inference_mode()
    def cancel(self, handle: int) -> None:
        """Free all that a request holds; no event of it follows. One that has ended (or never was) is let be."""
        for row in [row for row in self._running if row.handle == handle]:
            self._leave(row)
        self._waiting = [row for row in self._waiting if row.handle != handle]

    @torch.inference_mode()
    def turn(self) -> list[Event]:
        """At most one chunk of prompts and one new token of every running sequence; what came of it."""
        self._admit()
        self._make_room()
        shares = self._shares()
        running = [row for row in self._running if shares.get(row.handle)]
        if not running:
            return []
        pieces = [_piece(row, shares[row.handle]) for row in running]
        logits_BV = self._packed.run(pieces)
        self._ran += sum(len(piece.ids) for row, piece in zip(running, pieces, strict=True) if not _fed(row, piece))
        drawing = [row for row, piece in zip(running, pieces, strict=True) if piece.wanted]
        asks = [_ask(row) for row in drawing]
        return [self._take(row, drawn) for row, drawn in zip(drawing, draw_rows(logits_BV, asks), strict=True)]

    def _take(self, row: _Row, drawn: Drawn) -> Event:
        """Go on by a token, and leave if it was the last."""
        finish: Finish | None = None
        error = drawn.error
        if error is None:
            row.ids.append(drawn.token)
            row.new.append(drawn.token)
            self._generated += 1
            request = row.request
            total, limit = len(row.ids), request.max_tokens
            finish = finish_of(row.new, total, limit, self._context, self._ends, request.stop)
            if request.constraint is not None and finish != "eos":
                try:
                    if request.constraint.accept(drawn.token):
                        finish = "stop"
                except Exception as raised:  # of this request alone: it is told, the others run on
                    error = f"the constraint failed at token {drawn.token}: {type(raised).__name__}: {raised}"
        cached, row.told = None if row.told else row.cached, True
        if error is not None:
            self._leave(row, failed=True)
            return Event(row.handle, cached=cached, error=error)
        if finish is not None:
            self._leave(row)
        elif len(row.new) == 1:
            self._keep(row)
        top = (drawn.top,) if row.request.sampling.logprobs else ()
        return Event(row.handle, (drawn.token,), (drawn.logprob,), top, finish, cached)

    def _admit(self) -> None:
        """Let in what fits, first come first served; one that waits for another's prefix holds up nobody."""
        for row in list(self._waiting):
            if len(self._running) >= self._rows:
                return
            if self._waits(row):
                continue
            row.live = self._store.take(self._need(row))
            if row.live is None:
                return
            self._waiting.remove(row)
            insort(self._running, row, key=_handle)
            if row.request.cache:
                row.pinned = self._cache.load(row.key, len(row.ids) - 1, row.live)
            self._cached += row.live.length
            row.cached = row.live.length if row.cached is None else row.cached

    def _waits(self, row: _Row) -> bool:
        """Whether a block or more of the prefix is being run for another request, and when not: it is cached."""
        if row.waits is not None:
            other, tokens = row.waits
            if other.live is not None and other.live.length < tokens:
                return True
            row.waits = None
        prompts = [one for one in self._running if one.request.cache and (one.rest > 1 or not one.new)]
        if not (row.request.cache and prompts and self._cache.pool.count):
            return False
        shared, other = max(((common(row.key, one.key), one) for one in prompts), key=lambda pair: pair[0])
        shared = min(shared, len(row.ids) - 1)
        if shared - self._cache.known(row.key) < self._cache.pool.size:
            return False
        assert other.live is not None
        if other.live.length < shared:
            row.waits = (other, shared)
            return True
        self._keep(other)
        return False

    def _keep(self, row: _Row) -> None:
        """In the prefix cache, but for what is not finite: others may begin with the same tokens."""
        if not row.request.cache or row.live is None or not row.live.finite:
            return
        node = self._cache.save(as_key(row.ids[: row.live.length]), row.live)
        if node is not None:
            self._unpin(row)
            row.pinned = node

    def _unpin(self, row: _Row) -> None:
        if row.pinned is not None:
            self._cache.index.unpin(row.pinned)
        row.pinned = None

    def _need(self, row: _Row) -> int:
        """Positions for what a sequence has and a little more."""
        left = row.request.max_tokens - len(row.new)
        return min(self._context, len(row.ids) + min(left, self._ahead + len(row.ids) // 4))

    def _make_room(self) -> None:
        """A position for the next token of every running sequence; where there is no memory, the youngest gives way."""
        for row in list(self._running):
            while row.live is not None and not self._store.grow(row.live, len(row.ids), self._need(row)):
                self._preempt(self._running[-1])

    def _preempt(self, row: _Row) -> None:
        self._leave(row)
        row.key = as_key(row.ids) if row.request.cache else b""
        insort(self._waiting, row, key=_handle)

    def _leave(self, row: _Row, failed: bool = False) -> None:
        """Free all that a running sequence holds."""
        assert row.live is not None
        if not failed:
            self._keep(row)
        self._unpin(row)
        self._store.free(row.live)
        row.live = None
        self._running.remove(row)

    def _shares(self) -> dict[int, int]:
        """How many tokens of each sequence run in this turn.

        Half of a chunk is for the oldest prompt, so that it comes to an end; the rest is for those with least left, so
        that short prompts pass long ones.
        """
        shares = {row.handle: 1 for row in self._running if row.rest == 1}
        prompts = [row for row in self._running if row.rest > 1]
        left = self._chunk
        for row in prompts[:1]:
            shares[row.handle] = min(row.rest, -(-left // 2))
            left -= shares[row.handle]
        for row in sorted(prompts, key=lambda one: one.rest):
            had = shares.get(row.handle, 0)
            share = min(row.rest, had + left)
            left -= share - had
            shares[row.handle] = share
        return shares


def _handle(row: _Row) -> int:
    return row.handle


def _piece(row: _Row, share: int) -> Piece:
    assert row.live is not None
    start = row.live.length
    return Piece(row.live, row.ids[start : start + share], wanted=share == row.rest)


def _ask(row: _Row) -> Ask:
    request = row.request
    return Ask(request.sampling, request.seed, len(row.ids), request.constraint, row.new)


def _fed(row: _Row, piece: Piece) -> bool:
    """A drawn token that ran to draw the next."""
    return bool(row.new) and len(piece.ids) == 1


def _check_sizes(*sizes: tuple[str, int, int]) -> None:
    for name, value, least in sizes:
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
