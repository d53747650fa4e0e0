"""One token for each row of a batch whose rows were asked for in different ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch
from torch import Tensor

from engine.interface import Sampling
from engine.requests import Constraint
from engine.sampling import best, draw, uniforms, weigh


@dataclass(frozen=True)
class Ask:
    """The next token of a sequence of `position` tokens."""

    sampling: Sampling
    seed: int
    position: int
    constraint: Constraint | None
    drawn: Sequence[int] = ()
    """The tokens behind its prompt."""


@dataclass(frozen=True)
class Drawn:
    token: int
    logprob: float
    """Under the model's own distribution, whatever a constraint allowed or a penalty took."""
    top: tuple[tuple[int, float], ...]
    error: str | None = None
    """Then the rest is void."""


def draw_rows(logits_BV: Tensor, asks: Sequence[Ask]) -> list[Drawn]:
    """A token for each row; what is wrong with one row is said in its `error` and concerns no other.

    Rows of one way of sampling are drawn together.
    """
    allowed, errors = _masks(asks, logits_BV)
    numbers = uniforms([ask.seed for ask in asks], [ask.position for ask in asks], 1)[:, 0]
    uniform_B = torch.from_numpy(numbers).to(logits_BV.device)
    groups: dict[Sampling, list[int]] = {}
    for row, ask in enumerate(asks):
        if row not in errors:
            groups.setdefault(ask.sampling, []).append(row)
    drawn = {row: Drawn(0, 0.0, (), error) for row, error in errors.items()}
    for sampling, rows in groups.items():
        index = torch.tensor(rows, device=logits_BV.device)
        masks = {at: allowed[row] for at, row in enumerate(rows) if row in allowed}
        group = [asks[row] for row in rows]
        whole = len(rows) == len(asks)
        part = (logits_BV, uniform_B) if whole else (logits_BV[index], uniform_B[index])
        drawn |= zip(rows, _draw_group(*part, sampling, masks, group), strict=True)
    return [drawn[row] for row in range(len(asks))]


def _draw_group(
    logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling, masks: dict[int, Tensor], asks: Sequence[Ask]
) -> list[Drawn]:
    weighed_BV = weigh(logits_BV, sampling, [ask.drawn for ask in asks])
    if masks:
        weighed_BV = logits_BV.clone() if weighed_BV is logits_BV else weighed_BV
        for row, mask_V in masks.items():
            weighed_BV[row].masked_fill_(~mask_V, -torch.inf)
    ids_B, logprobs_B = draw(logits_BV, uniform_B, sampling, weighed_BV)
    # One transfer for both: float64 holds ids exactly.
    tokens, logprobs = torch.stack((ids_B.double(), logprobs_B.double())).tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    if sampling.logprobs:
        ids_BK, values_BK = best(logits_BV, sampling.logprobs)
        pairs = zip(ids_BK.tolist(), values_BK.tolist(), strict=True)
        tops = [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
    return [
        Drawn(int(token), logprob, top, _nan(ask.position) if isnan(logprob) else None)
        for token, logprob, top, ask in zip(tokens, logprobs, tops, asks, strict=True)
    ]


def _nan(position: int) -> str:
    return f"the model's logits are nan after {position} tokens; try dtype float32"


def _masks(asks: Sequence[Ask], logits_BV: Tensor) -> tuple[dict[int, Tensor], dict[int, str]]:
    """By row, the allowed ids [V], and what went wrong in making them."""
    allowed: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for row, ask in enumerate(asks):
        if ask.constraint is None:
            continue
        try:
            words = ask.constraint.mask()
        except Exception as error:
            errors[row] = f"the constraint failed after {ask.position} tokens: {type(error).__name__}: {error}"
            continue
        if words is None:
            continue
        mask_V = _unpack(words, logits_BV.shape[1])
        if mask_V.any():
            allowed[row] = torch.from_numpy(mask_V).to(logits_BV.device)
        else:
            errors[row] = f"the constraint allows no token after {ask.position} tokens"
    return allowed, errors


def _unpack(words: Sequence[int], vocab: int) -> np.ndarray:
    """Booleans [vocab] of words of 32 bits; ids beyond the words are not allowed, those beyond the model are left out.

    A word may be signed or not.
    """
    packed = np.asarray(words)
    packed = packed.astype(np.int64).astype(np.uint32) if packed.dtype != np.uint32 else packed
    bits = np.unpackbits(packed.view(np.uint8), bitorder="little")[:vocab].astype(bool)
    return np.pad(bits, (0, vocab - len(bits)))
