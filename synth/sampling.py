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
    end tokens end a sample. Raises ValueError if a prompt leaves no room for `max_new_tokens`.
    """
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    _check_room(model, max(map(len, ids), default=0), settings.max_new_tokens)
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    samples: dict[int, Sample] = {}
    for batch in tqdm(batches, desc="generate", unit="batch", disable=len(batches) < 2):
        drawn = _sample_batch(model, tokenizer, [ids[i] for i in batch], [seeds[i] for i in batch], settings)
        samples.update(zip(batch, drawn, strict=True))
    return [samples[index] for index in range(len(ids))]


def _check_room(model: Any, longest: int, max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"the longest prompt has {longest} tokens; with max_new_tokens={max_new_tokens} that is more than the "
            f"model's {limit} positions: set max_new_tokens to at most {limit - longest}"
        )


@torch.inference_mode()
def _sample_batch(
    model: Any, tokenizer: Any, ids: list[list[int]], seeds: list[int], settings: Sampling
) -> list[Sample]:
    width = max(map(len, ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    input_BT = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    ends = _end_tokens(model, tokenizer)
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
        eos_token_id=sorted(ends),
    )
    return [_read(tokenizer, row, ends) for row in output_BT[:, width:].tolist()]


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
