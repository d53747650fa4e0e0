"""Drawing one token for each row of a batch, from the row's own uniform number.

The draw inverts the cumulative distribution in the order of ids. Sorting is avoided: cuts are thresholds on the
probability, and the search goes over sums of blocks first, so a vocabulary of 49,152 costs one softmax and one sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.interface import Sampling

BLOCK = 256
"""Tokens summed at once in the search; smaller vocabularies than eight blocks are searched directly."""
CANDIDATES = 1024
"""Most probable tokens looked at first for top-p."""


def draw(
    logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling, weighed_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One id for each row and its log-probability under the model's own distribution at temperature 1, both [B].

    `logits_BV` float32, the model's; `weighed_BV`: what is drawn from, if it is something else (`weigh`, a mask).
    `uniform_B` float64 in [0, 1). Tokens of equal probability at the edge of a cut are all kept.
    """
    weighed_BV = logits_BV if weighed_BV is None else weighed_BV
    if sampling.temperature == 0:
        ids_B = weighed_BV.argmax(-1)
    else:
        scaled_BV = weighed_BV if sampling.temperature == 1 else weighed_BV / sampling.temperature
        ids_B = _invert(_cut(scaled_BV.softmax(-1), sampling), uniform_B)
    return ids_B, logits_BV.gather(-1, ids_B[:, None])[:, 0] - logits_BV.logsumexp(-1)


def weigh(logits_BV: Tensor, sampling: Sampling, drawn: Sequence[Sequence[int]]) -> Tensor:
    """A copy of the logits with the bias, and the penalties for what each row has `drawn`; themselves without any."""
    if not (sampling.logit_bias or sampling.penalises):
        return logits_BV
    weighed_BV = logits_BV.clone()
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        weighed_BV[:, list(ids)] += weighed_BV.new_tensor(values)
    if sampling.penalises:
        counted = [np.unique(np.asarray(tokens, np.int64), return_counts=True) for tokens in drawn]
        ids_N, counts_N = (np.concatenate(parts) for parts in zip(*counted, strict=True))
        rows_N = np.repeat(np.arange(len(counted)), [len(ids) for ids, _ in counted])
        lost_N = weighed_BV.new_tensor(counts_N * sampling.frequency_penalty + sampling.presence_penalty)
        weighed_BV[torch.from_numpy(rows_N), torch.from_numpy(ids_N)] -= lost_N
    return weighed_BV


def best(logits_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most probable ids of each row, best first, and their log-probabilities; both [B, count]."""
    logits_BK, ids_BK = logits_BV.topk(min(count, logits_BV.shape[-1]), -1)
    return ids_BK, logits_BK - logits_BV.logsumexp(-1, keepdim=True)


def uniforms(seeds: Sequence[int], positions: Sequence[int], count: int) -> np.ndarray:
    """`engine.rules.uniform` of each seed at `count` positions from the one beside it, float64 [len(seeds), count]."""
    mask = (1 << 64) - 1
    seeds_B1 = np.array([seed & mask for seed in seeds], dtype=np.uint64)[:, None]
    positions_BN = np.array(positions, dtype=np.uint64)[:, None] + np.arange(count, dtype=np.uint64)
    bits_BN = _mix(_mix(seeds_B1) ^ positions_BN) >> np.uint64(11)
    return np.asarray(bits_BN.astype(np.float64) * 2.0**-53)


def _mix(state: Any) -> Any:
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _cut(weights_BV: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities with what top-k, then top-p, then min-p leave out set to 0; not normalised."""
    if 0 < sampling.top_k < weights_BV.shape[-1]:
        least_B1 = weights_BV.topk(sampling.top_k, -1).values[:, -1:]
        weights_BV = weights_BV.where(weights_BV >= least_B1, 0.0)
    if sampling.top_p < 1:
        weights_BV = weights_BV.where(weights_BV >= _nucleus(weights_BV, sampling.top_p), 0.0)
    if sampling.min_p > 0:
        least_B1 = sampling.min_p * weights_BV.amax(-1, keepdim=True)
        weights_BV = weights_BV.where(weights_BV >= least_B1, 0.0)
    return weights_BV


def _nucleus(weights_BV: Tensor, share: float) -> Tensor:
    """The least probability in the smallest set that holds `share` of the mass, [B, 1]."""
    wanted_B1 = share * weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
    sorted_BK = weights_BV.topk(min(CANDIDATES, weights_BV.shape[-1]), -1).values
    mass_BK = sorted_BK.cumsum(-1, dtype=torch.float64)
    if sorted_BK.shape[-1] < weights_BV.shape[-1] and bool((mass_BK[:, -1:] < wanted_B1).any()):
        sorted_BK = weights_BV.sort(-1, descending=True).values
        mass_BK = sorted_BK.cumsum(-1, dtype=torch.float64)
    kept_BK = mass_BK - sorted_BK < wanted_B1
    return sorted_BK.masked_fill(~kept_BK, 1.0).amin(-1, keepdim=True)


def _invert(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The id at which the cumulative weight passes `uniform_B` of the whole, [B]."""
    B, V = weights_BV.shape
    if V < 8 * BLOCK:
        cumulative_BV = weights_BV.cumsum(-1, dtype=torch.float64)
        return _search(cumulative_BV, uniform_B * cumulative_BV[:, -1])[0]
    blocks_BSW = torch.nn.functional.pad(weights_BV, (0, -V % BLOCK)).view(B, -1, BLOCK)
    sums_BS = blocks_BSW.sum(-1, dtype=torch.float64).cumsum(-1)
    block_B, rest_B = _search(sums_BS, uniform_B * sums_BS[:, -1])
    inside_BW = blocks_BSW[torch.arange(B, device=block_B.device), block_B].cumsum(-1, dtype=torch.float64)
    return block_B * BLOCK + _search(inside_BW, rest_B)[0]


def _search(cumulative_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry above the target, never one without weight, and what of the target lies inside it.

    Among nan the last entry: the caller sees a nan log-probability instead of an index error of the device.
    """
    total_B = cumulative_BN[:, -1]
    # Rounding may lift a target to the total, behind which no entry is.
    target_B1 = torch.minimum(target_B, torch.nextafter(total_B, torch.zeros_like(total_B)))[:, None]
    found_B1 = torch.searchsorted(cumulative_BN, target_B1, right=True).clamp(max=cumulative_BN.shape[-1] - 1)
    before_B1 = cumulative_BN.gather(-1, (found_B1 - 1).clamp(min=0)).where(found_B1 > 0, 0.0)
    return found_B1[:, 0], (target_B1 - before_B1)[:, 0]
