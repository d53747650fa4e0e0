"""An engine and a verifier without a model, for the tests of what is written against the interface. No torch.

`FakeEngine` draws from a script: a function of (ids, seed, position), or a `Tree` of completions. It keeps the
interface's rules (end of a sequence, errors, exact usage) with the same code as the real engines, and counts as they
do: equal prompts of one `open` once, a drawn token as fed when the next one is drawn after it.

    tree = Tree({(1, 2): [[5, 6, 0], [5, 7, 0], [5, 7, 0]]})       # prompt -> completions; more of one, more probable
    engine = FakeEngine(tree, end_ids={0})
    [seq] = engine.open([[1, 2]], [0])
    engine.step(engine.fork(seq, range(4)), Sampling(), max_tokens=8)
    verifier = FakeVerifier(lambda ids: 0.9 if 7 in ids else 0.1)  # ids: prompt and all steps so far
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.interface import Sampling, StepOut, Usage
from engine.rules import (
    check_distinct,
    check_ids,
    check_prompts,
    check_sampling,
    check_stops,
    finish_of,
    limits_of,
    uniform,
)

Next = Callable[[Sequence[int], int, int], int]
"""(ids so far, seed, position of the new token) -> the new token. Position is `len(ids)`."""
Score = Callable[[Sequence[int]], float]
"""Prompt and all steps so far -> probability that the last step is right."""


class Tree:
    """A language model over given completions of given prompts.

    The probability of a token is the share of it among the completions that begin as the sequence went on, so
    log-probabilities are true ones and a sequence never leaves the tree. Completions of one prompt must not be
    prefixes of one another (end them with an end token).
    """

    def __init__(self, completions: Mapping[tuple[int, ...], Sequence[Sequence[int]]]) -> None:
        self._counts: dict[tuple[int, ...], dict[int, int]] = {}
        for prompt, rows in completions.items():
            for row in rows:
                for length, token in enumerate(row):
                    counts = self._counts.setdefault((*prompt, *row[:length]), {})
                    counts[token] = counts.get(token, 0) + 1

    def probabilities(self, ids: Sequence[int]) -> dict[int, float]:
        """Next tokens, most probable first. Raises KeyError where no completion goes on."""
        counts = self._counts.get(tuple(ids))
        if counts is None:
            raise KeyError(f"no completion in the tree goes on after {list(ids)}; add one, or an end token before it")
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {token: count / total for token, count in ordered}


@dataclass(eq=False)
class FakeSeq:
    """A handle of either fake."""

    ids: list[int]
    """Prompt and generated (or scored) tokens so far."""
    seed: int = 0
    pending: bool = False
    """The last token was drawn and not fed yet."""
    open: bool = True


@dataclass
class _Ledger:
    prompt: int = 0
    generated: int = 0
    fed: int = 0


@dataclass
class FakeEngine:
    """`engine.interface.Engine` from a script.

    With a function as script every token has log-probability 0 and is its own top list, and `Sampling` changes
    nothing. With a `Tree` temperature 0 takes the most probable token and any other one draws from the tree as it
    stands (temperature, top-k, top-p and min-p do not reshape it).
    """

    script: Next | Tree
    end_ids: frozenset[int] | Iterable[int] = frozenset()
    context: int = 1 << 20
    vocab: int = 1 << 31
    _ledger: _Ledger = field(default_factory=_Ledger)

    def __post_init__(self) -> None:
        self.end_ids = frozenset(self.end_ids)

    def open(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[FakeSeq]:
        check_prompts(prompts, seeds, self.context, self.vocab)
        self._ledger.prompt += sum(map(len, {tuple(prompt) for prompt in prompts}))
        return [FakeSeq(list(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def fork(self, seq: FakeSeq, seeds: Sequence[int]) -> list[FakeSeq]:
        _check_open([seq])
        return [FakeSeq(list(seq.ids), seed, seq.pending) for seed in seeds]

    def step(
        self,
        seqs: Sequence[FakeSeq],
        sampling: Sampling,
        max_tokens: int | Sequence[int],
        stop: Sequence[Sequence[int]] = (),
    ) -> list[StepOut]:
        _check_open(seqs)
        check_distinct(seqs)
        check_sampling(sampling)
        check_stops(stop)
        limits = limits_of(max_tokens, len(seqs))
        return [self._extend(seq, sampling, limit, stop) for seq, limit in zip(seqs, limits, strict=True)]

    def close(self, seqs: Sequence[FakeSeq]) -> None:
        _close(seqs)

    def usage(self) -> Usage:
        return Usage(self._ledger.prompt, self._ledger.generated, self._ledger.fed)

    def _extend(self, seq: FakeSeq, sampling: Sampling, limit: int, stop: Sequence[Sequence[int]]) -> StepOut:
        out = StepOut([], [], "context", [])
        if len(seq.ids) >= self.context:
            return out
        finish = None
        while finish is None:
            token, probabilities = self._draw(seq, sampling)
            self._ledger.fed += seq.pending
            self._ledger.generated += 1
            seq.pending = True
            seq.ids.append(token)
            out.ids.append(token)
            out.logprobs.append(math.log(probabilities[token]))
            if sampling.logprobs:
                best = list(probabilities.items())[: sampling.logprobs]
                out.top.append([(other, math.log(share)) for other, share in best])
            finish = finish_of(out.ids, len(seq.ids), limit, self.context, frozenset(self.end_ids), stop)
        return StepOut(out.ids, out.logprobs, finish, out.top)

    def _draw(self, seq: FakeSeq, sampling: Sampling) -> tuple[int, dict[int, float]]:
        position = len(seq.ids)
        if not isinstance(self.script, Tree):
            token = self.script(seq.ids, seq.seed, position)
            return token, {token: 1.0}
        probabilities = self.script.probabilities(seq.ids)
        uniform_left = uniform(seq.seed, position) if sampling.temperature else 0.0
        for token, share in probabilities.items():
            uniform_left -= share
            if uniform_left < 0:
                return token, probabilities
        return next(reversed(probabilities)), probabilities  # rounding: the shares summed to just below 1


@dataclass
class FakeVerifier:
    """`engine.interface.Verifier` that scores a sequence of ids by a function; must lie in [0, 1]."""

    score: Score
    context: int = 1 << 20
    vocab: int = 1 << 31
    _ledger: _Ledger = field(default_factory=_Ledger)

    def open(self, prompts: Sequence[Sequence[int]]) -> list[FakeSeq]:
        check_prompts(prompts, [0] * len(prompts), self.context, self.vocab)
        self._ledger.prompt += sum(map(len, {tuple(prompt) for prompt in prompts}))
        return [FakeSeq(list(prompt)) for prompt in prompts]

    def fork(self, seq: FakeSeq, count: int) -> list[FakeSeq]:
        _check_open([seq])
        return [FakeSeq(list(seq.ids)) for _ in range(count)]

    def extend(self, seqs: Sequence[FakeSeq], steps: Sequence[Sequence[int]]) -> list[float]:
        _check_open(seqs)
        check_distinct(seqs)
        for index, (seq, step) in enumerate(zip(seqs, steps, strict=True)):
            if not len(step):
                raise ValueError(f"step {index} is empty; there is nothing to score, leave the sequence out")
            if len(seq.ids) + len(step) > self.context:
                raise ValueError(
                    f"step {index} ends at position {len(seq.ids) + len(step)}, the context has {self.context}"
                )
            check_ids(step, self.vocab, f"step {index}")
        return [self._append(seq, step) for seq, step in zip(seqs, steps, strict=True)]

    def read(self, seqs: Sequence[FakeSeq], paths: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        check_distinct(seqs)
        return [[self.extend([seq], [step])[0] for step in path] for seq, path in zip(seqs, paths, strict=True)]

    def close(self, seqs: Sequence[FakeSeq]) -> None:
        _close(seqs)

    def usage(self) -> Usage:
        return Usage(prompt=self._ledger.prompt)

    def _append(self, seq: FakeSeq, step: Sequence[int]) -> float:
        seq.ids.extend(step)
        self._ledger.prompt += len(step)
        score = self.score(seq.ids)
        if not 0 <= score <= 1:
            raise ValueError(f"the score of {seq.ids} is {score}; a probability in [0, 1] was expected")
        return score


def _close(seqs: Sequence[FakeSeq]) -> None:
    check_distinct(seqs)
    _check_open(seqs)
    for seq in seqs:
        seq.open = False


def _check_open(seqs: Sequence[FakeSeq]) -> None:
    if any(not seq.open for seq in seqs):
        raise ValueError("the sequence was closed; fork it before closing if it is still needed")
