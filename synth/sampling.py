"""Batched sampling from a transformers model, each sample from its own random stream.

A stream per sample makes the result independent of how samples are batched and sharded, up to float rounding in the
model; the price is one uniform number per sample and token instead of one call of `multinomial` for the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Sampling(NamedTuple):
    """Settings under transformers' names."""

    max_new_tokens: int
    temperature: float
    repetition_penalty: float
    top_p: float
    top_k: int
    do_sample: bool


class Sample(NamedTuple):
    text: str
    """Without special tokens and surrounding white space."""
    tokens: int
    """Tokens generated, the end token included."""
    finished: bool
    """An end token came within the limit."""


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Sampling, batch_size: int
) -> list[Sample]:
    """One sample for each of `prompts`, drawn from the stream of the seed beside it.

    Prompts are sorted by length, so that a batch carries little padding. Both the tokenizer's `eos` and the model's
    end tokens end a sample; one that reaches the model's last position is cut there, unfinished. Raises ValueError if
    no prompt leaves room for a token.
    """
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    limits = _limits(model, ids, settings.max_new_tokens)
    # Longest prompts first: if memory is short, it shows at once.
    order = sorted((i for i in range(len(ids)) if limits[i] > 0), key=lambda i: (-len(ids[i]), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    samples = [Sample("", 0, False)] * len(ids)
    for batch in tqdm(batches, desc="generate", unit="batch", disable=len(batches) < 2):
        rows = _generate(model, tokenizer, [ids[i] for i in batch], [seeds[i] for i in batch], settings)
        for index, row in zip(batch, rows, strict=True):
            samples[index] = _read(tokenizer, row[: limits[index]], _end_tokens(model, tokenizer))
    return samples


def _limits(model: Any, ids: list[list[int]], max_new_tokens: int) -> list[int]:
    """New tokens that each prompt has room for; 0 or less: none."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return [max_new_tokens] * len(ids)
    limits = [min(max_new_tokens, positions - len(row)) for row in ids]
    if limits and max(limits) < 1:
        shortest = min(map(len, ids))
        raise ValueError(f"the shortest prompt has {shortest} tokens, the model only {positions} positions")
    return limits


@torch.inference_mode()
def _generate(
    model: Any, tokenizer: Any, ids: list[list[int]], seeds: list[int], settings: Sampling
) -> list[list[int]]:
    """New tokens for each of a batch of prompts, padded behind the end."""
    width = max(map(len, ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    input_BT = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    output_BT = model.generate(
        input_ids=input_BT,
        attention_mask=mask_BT,
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,  # The last processor leaves one candidate: the one that was drawn.
        repetition_penalty=settings.repetition_penalty,
        temperature=None,
        top_p=None,
        top_k=None,
        logits_processor=_processors(settings, seeds),
        pad_token_id=pad,
        eos_token_id=sorted(_end_tokens(model, tokenizer)),
    )
    rows: list[list[int]] = output_BT[:, width:].tolist()
    return rows


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ends = set(configured) if isinstance(configured, list) else {configured}
    return {token for token in (ends | {tokenizer.eos_token_id}) if token is not None}


def _read(tokenizer: Any, row: list[int], ends: set[int]) -> Sample:
    """Cut a row at its first end token; what follows is padding."""
    length = next((index + 1 for index, token in enumerate(row) if token in ends), None)
    kept = row[:length]
    return Sample(tokenizer.decode(kept, skip_special_tokens=True).strip(), len(kept), length is not None)


def _processors(settings: Sampling, seeds: list[int]) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if not settings.do_sample or settings.temperature == 0:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(_Draw(seeds, settings.max_new_tokens))
    return processors


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token per sequence: drawn from the scores by inverse transform with the sample's own uniforms."""

    def __init__(self, seeds: list[int], steps: int) -> None:
        rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        self._uniform_BN = torch.stack(rows)
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform_B1 = self._uniform_BN[:, self._step, None].to(scores.device)
        self._step += 1
        cumulative_BV = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
        # Scaled to the true sum: rounding must not draw the entry after the last.
        drawn_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
        drawn_B1 = drawn_B1.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn_B1, 0.0)
