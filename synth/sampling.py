"""Samples for a list of prompts from the torch engine, each from its own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from engine.interface import Engine, Sampling, StepOut


class Sample(NamedTuple):
    text: str
    """Without special tokens and surrounding white space."""
    tokens: int
    """Tokens generated, the end token included."""
    finished: bool
    """An end token came within the limit."""


def sample(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    batch_size: int,
) -> list[Sample]:
    """One sample for each of `prompts`, drawn from the stream of the seed beside it.

    A sample is cut, unfinished, at the engine's last position. Equal prompts side by side run through the model once.
    Raises ValueError if no prompt leaves room for a token.
    """
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    if ids and min(map(len, ids)) >= engine.context:
        raise ValueError(
            f"the shortest prompt has {min(map(len, ids))} tokens, the model only {engine.context} positions"
        )
    # Longest prompts first: if memory is short, it shows at once.
    order = sorted((i for i in range(len(ids)) if len(ids[i]) < engine.context), key=lambda i: (-len(ids[i]), i))
    limits = [max_new_tokens] * len(order)
    outs = complete(engine, [ids[i] for i in order], [seeds[i] for i in order], sampling, limits, batch_size)
    samples = [Sample("", 0, False)] * len(ids)
    for index, out in zip(order, outs, strict=True):
        text = tokenizer.decode(out.ids, skip_special_tokens=True).strip()
        samples[index] = Sample(text, len(out.ids), out.finish == "eos")
    return samples


def complete(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    limits: Sequence[int],
    batch_size: int,
) -> list[StepOut]:
    """Each of `prompts` continued by up to its limit of tokens, `batch_size` sequences at a time.

    Equal prompts of a batch run through the model once; the engine forks them.
    """
    outs: list[StepOut] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="sample", unit="batch", leave=False):
        batch = slice(start, start + batch_size)
        opened = engine.open(prompts[batch], seeds[batch])
        outs += engine.step(opened, sampling, limits[batch])
        engine.close(opened)
    return outs
