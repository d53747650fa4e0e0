"""The default engine: any transformers causal language model, on a CPU or one GPU.

    engine = TorchEngine("path/to/model")          # or a model object, which is set to eval mode and used as it is
    seqs = engine.open([prompt] * 16, range(16))   # the prompt runs through the model once
    outs = engine.step(seqs, Sampling(temperature=0.8), max_tokens=64, stop=[newline])
    more = engine.fork(seqs[3], [100, 101])        # costs nothing: a handle on the same cache

A sequence's cache is an immutable `engine.prefix.Prefix` between calls; `step` gathers what comes after the shared
prompts into one contiguous block, decodes in place, and keeps each row's new columns when it leaves. Gathering costs
a copy of the tails per call (about 1 ms at 16 rows of 300 tokens of a 5M model): steps of several tokens pay it back.

In float32 a sequence's tokens do not depend on its neighbours. In bfloat16 the same holds up to rounding: kernels for
another batch size may sum in another order, and a token whose draw falls within that difference changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.cache import CHUNK, ROWS, KVTree
from engine.interface import Finish, Sampling, StepOut, Usage
from engine.load import end_ids_in, load_model, load_tree
from engine.prefix import Prefix
from engine.rules import check_distinct, check_prompts, check_sampling, check_stops, finish_of, limits_of
from engine.sampling import best, draw, uniforms, weigh

AHEAD = 64
"""Uniform numbers drawn at once for each row."""


@dataclass(eq=False)
class Seq:
    """A handle. `ids` is prompt and generated tokens so far."""

    ids: list[int]
    seed: int
    prefix: Prefix | None
    """What of `ids` has run through the model: all, or all but the last; None once closed."""
    logits: Tensor | None
    """Of the next token, [vocabulary], if all of `ids` has run."""
    prompt: int
    """How many of `ids` were given; the others were drawn, here or before a fork."""


@dataclass(eq=False)
class _Row:
    """A sequence during one call of `step`."""

    seq: Seq
    limit: int
    prefix: Prefix
    """What has run through the model; becomes the sequence's when the call succeeds."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def total(self) -> int:
        return len(self.seq.ids) + len(self.ids)


class TorchEngine:
    """`engine.interface.Engine` on transformers. Not for several threads.

    `device` is "auto" (CUDA if there is some), "cpu" or "cuda"; `dtype` None is bfloat16 on CUDA, float32 on a CPU;
    both are for a folder, a model object keeps its own. `context` None is all of the model's positions. `end_ids` None
    is what generation_config and the folder's tokenizer name. Working memory is bounded by `rows` sequences and
    `positions` cache positions at once (None: a quarter of the free memory) and `chunk` tokens per forward pass of a
    prompt: larger calls are split and run one part after the other, with the same tokens.
    Raises ValueError for a model that cannot be run so (`engine.load`), FileNotFoundError for an incomplete folder.
    """

    def __init__(
        self,
        model: Any,
        device: str = "auto",
        dtype: torch.dtype | str | None = None,
        context: int | None = None,
        end_ids: Iterable[int] | None = None,
        rows: int = ROWS,
        positions: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        folder = Path(model) if isinstance(model, str | Path) else None
        self.model = (model if folder is None else load_model(folder, device, dtype)).eval()
        self.tree: KVTree = load_tree(self.model, context, positions, rows, chunk)
        self._ends = frozenset(end_ids_in(self.model, folder) if end_ids is None else end_ids)
        self._vocab = int(self.model.get_input_embeddings().weight.shape[0])
        self._usage = Usage()

    @property
    def context(self) -> int:
        return self.tree.context

    @property
    def end_ids(self) -> frozenset[int]:
        return self._ends

    def open(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Seq]:
        check_prompts(prompts, seeds, self.context, self._vocab)
        if not prompts:
            return []
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        logits, prefixes = self.tree.extend([None] * len(distinct), distinct)
        self._count(prompt=sum(map(len, distinct)))
        known = dict(zip(distinct, zip(prefixes, logits[:, 0].float(), strict=True), strict=True))
        pairs = zip(prompts, seeds, strict=True)
        return [Seq(list(prompt), seed, *known[tuple(prompt)], len(prompt)) for prompt, seed in pairs]

    def fork(self, seq: Seq, seeds: Sequence[int]) -> list[Seq]:
        _check_open([seq])
        return [Seq(list(seq.ids), seed, seq.prefix, seq.logits, seq.prompt) for seed in seeds]

    @torch.inference_mode()
    def step(
        self,
        seqs: Sequence[Seq],
        sampling: Sampling,
        max_tokens: int | Sequence[int],
        stop: Sequence[Sequence[int]] = (),
    ) -> list[StepOut]:
        prefixes = _check_open(seqs)
        check_distinct(seqs)
        check_sampling(sampling, self._vocab)
        check_stops(stop)
        limits = limits_of(max_tokens, len(seqs))
        rows = [_Row(*row) for row in zip(seqs, limits, prefixes, strict=True)]
        for row in rows:
            if row.total >= self.context:
                row.finish = "context"
        call = _Call(self, sampling, [list(tokens) for tokens in stop])
        call.draw_first([row for row in rows if row.finish is None and row.seq.logits is not None])
        for part in self._split([row for row in rows if row.finish is None]):
            call.decode(part)
        for row in rows:  # only now: a call that fails leaves the sequences as they were
            row.seq.prefix = row.prefix
            row.seq.ids += row.ids
            row.seq.logits = None if row.ids else row.seq.logits
        self._count(generated=sum(len(row.ids) for row in rows), fed=call.fed)
        return [StepOut(row.ids, row.logprobs, row.finish or "length", row.top) for row in rows]

    def close(self, seqs: Sequence[Seq]) -> None:
        check_distinct(seqs)
        _check_open(seqs)
        for seq in seqs:
            seq.prefix = seq.logits = None

    def usage(self) -> Usage:
        return self._usage

    def _count(self, prompt: int = 0, generated: int = 0, fed: int = 0) -> None:
        used = self._usage
        self._usage = Usage(used.prompt + prompt, used.generated + generated, used.fed + fed)

    def _split(self, rows: list[_Row]) -> list[list[_Row]]:
        """Rows of one prompt side by side, then as many together as fit."""
        order = {id(row.prefix.trunk): i for i, row in enumerate(rows)}
        rows = sorted(rows, key=lambda row: order[id(row.prefix.trunk)])
        new = [min(row.limit, self.context - len(row.seq.ids)) for row in rows]
        parts = self.tree.split([row.prefix for row in rows], new)
        return [[rows[i] for i in part] for part in parts]


class _Call:
    """One call of `step`."""

    def __init__(self, engine: TorchEngine, sampling: Sampling, stops: list[list[int]]) -> None:
        self.tree, self.context, self.ends = engine.tree, engine.context, engine.end_ids
        self.sampling, self.stops = sampling, stops
        self.fed = 0

    def draw_first(self, rows: list[_Row]) -> None:
        """The next token of sequences whose logits are at hand."""
        for start in range(0, len(rows), self.tree.rows):
            part = rows[start : start + self.tree.rows]
            logits_BV = torch.stack([row.seq.logits for row in part if row.seq.logits is not None])
            self._draw(part, logits_BV, self._uniforms(part, 1)[:, 0])

    def decode(self, rows: list[_Row]) -> None:
        """Feed each row's last token and draw the next, until all rows are finished."""
        batch = self.tree.batch([row.prefix for row in rows], max(row.limit for row in rows))
        ids_B = torch.tensor([(row.ids or row.seq.ids)[-1] for row in rows], device=self.tree.device)
        turn, fed = 0, 0
        while rows:
            if turn % AHEAD == 0:
                uniform_BN = self._uniforms(rows, AHEAD)
            logits_BV = self.tree.run(batch, ids_B[:, None])[:, 0].float()
            fed += 1
            self.fed += len(rows)
            ids_B = self._draw(rows, logits_BV, uniform_BN[:, turn % AHEAD])
            turn += 1
            leaving = [i for i, row in enumerate(rows) if row.finish is not None]
            if leaving:
                for i in leaving:
                    rows[i].prefix = batch.save(i, fed)
                order = batch.drop(leaving)
                rows = [rows[i] for i in order]
                index = torch.tensor(order, dtype=torch.long, device=self.tree.device)
                ids_B, uniform_BN = ids_B[index], uniform_BN[index]

    def _draw(self, rows: list[_Row], logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Draw a token for each row, write it down, and mark the rows that it finishes; ids [B]."""
        drawn = [row.seq.ids[row.seq.prompt :] + row.ids for row in rows] if self.sampling.penalises else []
        ids_B, logprobs_B = draw(logits_BV, uniform_B, self.sampling, weigh(logits_BV, self.sampling, drawn))
        # One transfer for both: float64 holds ids exactly.
        tokens, logprobs = torch.stack((ids_B.double(), logprobs_B.double())).tolist()
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if isnan(logprob):
                raise FloatingPointError(f"the model's logits are nan after {row.total} tokens; try dtype float32")
            row.ids.append(int(token))
            row.logprobs.append(logprob)
            row.finish = finish_of(row.ids, row.total, row.limit, self.context, self.ends, self.stops)
        if self.sampling.logprobs:
            for row, pairs in zip(rows, _pairs(*best(logits_BV, self.sampling.logprobs)), strict=True):
                row.top.append(pairs)
        return ids_B

    def _uniforms(self, rows: list[_Row], count: int) -> Tensor:
        """[rows, count] float64: made on the host, so that every device draws alike."""
        numbers = uniforms([row.seq.seed for row in rows], [row.total for row in rows], count)
        return torch.from_numpy(numbers).to(self.tree.device)


def _pairs(ids_BK: Tensor, logprobs_BK: Tensor) -> list[list[tuple[int, float]]]:
    rows = zip(ids_BK.tolist(), logprobs_BK.tolist(), strict=True)
    return [list(zip(ids, logprobs, strict=True)) for ids, logprobs in rows]


def _check_open(seqs: Sequence[Seq]) -> list[Prefix]:
    prefixes = [seq.prefix for seq in seqs if seq.prefix is not None]
    if len(prefixes) < len(seqs):
        index = [seq.prefix for seq in seqs].index(None)
        raise ValueError(f"sequence {index} of the call was closed; fork it before closing if it is still needed")
    return prefixes
