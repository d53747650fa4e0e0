"""What every engine checks and decides alike, in plain Python: bad input, the end of a sequence, the random numbers.

The uniform number of a token is a hash of (seed, position), computed on the host for every device: the same on CPU and
GPU, whatever else is in the batch and whatever was drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from engine.interface import Finish, Sampling

COLDEST = 1e-4
"""Temperatures below it overflow float32 and would be greedy anyway."""
_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at absolute `position` of a sequence with `seed`; 53 random bits.

    Two rounds of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators", section 4).
    """
    return (_mix(_mix(seed & _MASK) ^ (position & _MASK)) >> 11) * 2.0**-53


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def finish_of(
    new: Sequence[int],
    total: int,
    limit: int,
    context: int,
    ends: frozenset[int],
    stops: Sequence[Sequence[int]],
) -> Finish | None:
    """Why a sequence leaves `step` after its last token: `new` tokens of this call, `total` of the sequence; or None.

    An end token comes before a stop sequence, that before the context's end, and that before `limit`.
    """
    if new[-1] in ends:
        return "eos"
    for stop in stops:
        if new[-1] == stop[-1] and len(new) >= len(stop) and list(new[-len(stop) :]) == list(stop):
            return "stop"
    if total >= context:
        return "context"
    return "length" if len(new) >= limit else None


def check_prompts(prompts: Sequence[Sequence[int]], seeds: Sequence[int], context: int, vocab: int) -> None:
    """Raise ValueError for a prompt that cannot be opened, or another number of seeds."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty; give it at least one token, e.g. the tokenizer's bos token")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens and the context {context} positions, so none is left for a"
                f" new token; cut the prompt to {context - 1} tokens or raise the context if the model allows it"
            )
        check_ids(prompt, vocab, f"prompt {index}")


def check_ids(ids: Sequence[int], vocab: int, what: str) -> None:
    """Raise ValueError if one of `ids` is outside the vocabulary."""
    if len(ids) and (min(ids) < 0 or max(ids) >= vocab):
        bad = next(token for token in ids if not 0 <= token < vocab)
        raise ValueError(
            f"{what} holds id {bad}, outside the vocabulary of {vocab}; encode it with this model's own tokenizer"
        )


def check_sampling(sampling: Sampling, vocab: int | None = None) -> None:
    """Raise ValueError for a setting that means nothing, or an id outside the vocabulary where that is known."""
    bounds = (
        (
            "temperature",
            sampling.temperature == 0 or sampling.temperature >= COLDEST,
            f"0 (greedy), or {COLDEST} or more",
        ),
        ("top_k", sampling.top_k >= 0, "0 (off) or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1 (off)"),
        ("min_p", 0 <= sampling.min_p <= 1, "from 0 (off) to 1"),
        ("logprobs", sampling.logprobs >= 0, "0 (none) or more"),
        ("frequency_penalty", isfinite(sampling.frequency_penalty), "finite; 0 is off"),
        ("presence_penalty", isfinite(sampling.presence_penalty), "finite; 0 is off"),
        ("logit_bias", all(isfinite(bias) for _, bias in sampling.logit_bias), "finite for each id"),
    )
    for name, fits, allowed in bounds:
        if not fits:
            raise ValueError(f"{name} is {getattr(sampling, name)}; it must be {allowed}")
    biased = [token for token, _ in sampling.logit_bias]
    if len(set(biased)) < len(biased):
        raise ValueError(f"logit_bias names id {max(biased, key=biased.count)} twice; give one number for each id")
    if vocab is not None:
        check_ids(biased, vocab, "logit_bias")


def limits_of(max_tokens: int | Sequence[int], count: int) -> list[int]:
    """One limit of new tokens for each of `count` sequences. Raises ValueError below 1."""
    limits = [max_tokens] * count if isinstance(max_tokens, int) else list(max_tokens)
    if len(limits) != count:
        raise ValueError(f"{len(limits)} limits in max_tokens for {count} sequences; give one number or one for each")
    if any(limit < 1 for limit in limits):
        raise ValueError(f"max_tokens is {min(limits)}; leave a sequence out of the call instead of asking for none")
    return limits


def check_stops(stops: Sequence[Sequence[int]]) -> None:
    """Raise ValueError for an empty stop sequence, which would stop everywhere."""
    if any(not len(stop) for stop in stops):
        raise ValueError("a stop sequence is empty; did the tokenizer encode the delimiter to nothing? Leave it out")


def check_distinct(seqs: Sequence[object]) -> None:
    """Raise ValueError if a handle comes twice in one call."""
    if len({id(seq) for seq in seqs}) != len(seqs):
        raise ValueError("a sequence comes twice in one call; fork it to continue it in two ways")
