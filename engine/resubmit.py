"""An engine over a server that only completes prompts: each step sends a sequence's ids again, to its prefix cache.

A handle holds ids and a seed, no cache, so forking and closing cost nothing. `step` works in rounds: every unfinished
sequence is one `Request`; what comes back is cut by `engine.rules.finish_of`, token by token, as in every engine. A
server that stopped for its own reasons (a stop *string*, the last token of a longer stop sequence) is simply asked
again. Tokens that it drew past the end are dropped, and counted.

The trade-off: a server draws with a generator of its own, started by a seed at each request. It is given a hash of
(sequence's seed, position of the first new token). So a rerun of the same calls draws the same tokens, and a fork what
its parent would draw in the same call; but cutting a generation into other calls gives other tokens, unlike with the
torch engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.interface import Finish, Sampling, StepOut, Usage
from engine.rules import (
    check_distinct,
    check_prompts,
    check_sampling,
    check_stops,
    finish_of,
    limits_of,
    uniform,
)

Stops = Sequence[Sequence[int]]


@dataclass(eq=False)
class ResubmittedSeq:
    """A handle: nothing of it lives in the server."""

    ids: list[int]
    """Prompt and generated tokens so far."""
    prompt: int
    """How many of `ids` are the prompt."""
    seed: int
    open: bool = True


@dataclass(frozen=True)
class Request:
    """Complete `ids` by at most `limit` tokens; the first `prompt` of them were given, the others drawn before."""

    ids: list[int]
    prompt: int
    seed: int
    """In [0, 2**31): of this request alone."""
    limit: int

    def spent(self, ran: int, drawn: int) -> Usage:
        """Of a completion that ran the last `ran` tokens of `ids` through the model and then drew `drawn`."""
        again = min(ran, len(self.ids) - self.prompt)
        return Usage(prompt=ran - again, generated=drawn, fed=again + max(0, drawn - 1))


@dataclass(frozen=True)
class Completion:
    """What a server made of a `Request`: at least one token, each with its log-probability and most probable ones.

    Both lists are empty where nobody asked for them.
    """

    ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    usage: Usage


@dataclass(frozen=True)
class Ends:
    """What ends a sequence, besides its limit."""

    context: int
    ids: frozenset[int]
    stops: Stops = ()


@dataclass
class Growing:
    """One sequence in one call: what was asked for, and what a server has added so far."""

    start: Sequence[int]
    prompt: int
    """How many of `start` are the prompt."""
    seed: int
    limit: int
    ends: Ends
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: Finish | None = None

    def __post_init__(self) -> None:
        if len(self.start) >= self.ends.context:
            self.finish = "context"

    def request(self) -> Request:
        """What to ask for next."""
        ids = [*self.start, *self.ids]
        room = min(self.limit - len(self.ids), self.ends.context - len(ids))
        return Request(ids, self.prompt, int(uniform(self.seed, len(ids)) * 2**31), room)

    def take(self, completion: Completion) -> None:
        """Append the completion up to where the sequence ends."""
        ends, before = self.ends, len(self.start)
        for position, token in enumerate(completion.ids):
            self.ids.append(token)
            if completion.logprobs:
                self.logprobs.append(completion.logprobs[position])
            if completion.top:
                self.top.append(completion.top[position])
            total = before + len(self.ids)
            self.finish = finish_of(self.ids, total, self.limit, ends.context, ends.ids, ends.stops)
            if self.finish is not None:
                return


class ResubmitEngine(ABC):
    """`engine.interface.Engine` but for `_complete`, which an adapter gives."""

    def __init__(self, context: int, vocab: int, end_ids: frozenset[int]) -> None:
        self._context, self._vocab, self._end_ids = context, vocab, end_ids
        self._usage = Usage()

    @property
    def context(self) -> int:
        return self._context

    @property
    def vocab(self) -> int:
        """Ids are below this."""
        return self._vocab

    @property
    def end_ids(self) -> frozenset[int]:
        return self._end_ids

    @abstractmethod
    def _complete(self, requests: Sequence[Request], sampling: Sampling, stop: Stops) -> list[Completion]:
        """One completion for each request, in order. May end early or, if the server cannot stop there, late."""

    def open(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[ResubmittedSeq]:
        """Nothing runs yet: the server sees a prompt at the first `step`, and is to prefill equal ones once."""
        check_prompts(prompts, seeds, self._context, self._vocab)
        return [ResubmittedSeq(list(prompt), len(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def fork(self, seq: ResubmittedSeq, seeds: Sequence[int]) -> list[ResubmittedSeq]:
        _check_open([seq])
        return [ResubmittedSeq(list(seq.ids), seq.prompt, seed) for seed in seeds]

    def step(
        self, seqs: Sequence[ResubmittedSeq], sampling: Sampling, max_tokens: int | Sequence[int], stop: Stops = ()
    ) -> list[StepOut]:
        """As the interface says. If a server fails, the sequences are as before the call."""
        _check_open(seqs)
        check_distinct(seqs)
        check_sampling(sampling, self._vocab)
        if sampling.penalises:
            raise ValueError(
                "frequency_penalty and presence_penalty count drawn tokens, and this engine sends those again as a"
                " prompt, where the server does not count them; leave the penalties out, or take the torch engine"
            )
        check_stops(stop)
        limits = limits_of(max_tokens, len(seqs))
        ends = Ends(self._context, self._end_ids, stop)
        grown = [Growing(seq.ids, seq.prompt, seq.seed, limit, ends) for seq, limit in zip(seqs, limits, strict=True)]
        while growing := [new for new in grown if new.finish is None]:
            completions = self._complete([new.request() for new in growing], sampling, stop)
            for new, completion in zip(growing, completions, strict=True):
                self._usage = add_usage(self._usage, completion.usage)
                new.take(completion)
        outs = [StepOut(new.ids, new.logprobs, new.finish or "length", new.top) for new in grown]
        for seq, out in zip(seqs, outs, strict=True):
            seq.ids.extend(out.ids)
        return outs

    def close(self, seqs: Sequence[ResubmittedSeq]) -> None:
        """Only marks them: what the server has cached goes when it needs the room."""
        check_distinct(seqs)
        _check_open(seqs)
        for seq in seqs:
            seq.open = False

    def usage(self) -> Usage:
        """Exact, by the server's own count of cached and computed tokens; a prefix it dropped and ran again counts."""
        return self._usage


def add_usage(one: Usage, other: Usage) -> Usage:
    """Sum of two ledgers."""
    return Usage(one.prompt + other.prompt, one.generated + other.generated, one.fed + other.fed)


def _check_open(seqs: Sequence[ResubmittedSeq]) -> None:
    if any(not seq.open for seq in seqs):
        raise ValueError("the sequence was closed; fork it before closing if it is still needed")
