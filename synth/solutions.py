"""Solutions sampled through an engine, and how often each step of them leads to the right answer.

Every sequence has its own seed, made of what it is (problem, number of the sample; for a rollout the tokens before it),
so neither batches nor shards nor a kill change what is drawn, but for float rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from acorn.problems import WordProblem, is_correct
from engine.interface import Engine, Sampling
from engine.prm_formats import End, encode_prompt, encode_steps
from synth.sampling import complete
from synth.step_check import SEPARATOR, split

_Head = tuple[str, tuple[int, ...]]
"""A problem's id and the tokens of the first steps of a solution."""


@dataclass
class Solution:
    """One sampled solution, as tokens and as text."""

    problem: WordProblem
    ids: list[int]
    """New tokens, with the end token."""
    steps: list[str]
    """Without the separators between them and without the end token; nothing stripped."""
    end: End
    """How the last step ended: with the end of the turn, with a separator (the limit cut behind it), by the limit."""
    ends: list[int] | None
    """Where each step ends in `ids`. None if the tokenizer does not encode the steps to `ids` again: then a reader of
    the text would not see what the model wrote."""
    shares: list[float] = field(default_factory=list)
    """Of each rolled-out step in order: the share of continuations that reach the right answer."""

    @property
    def finished(self) -> bool:
        return self.end == "turn"

    @property
    def correct(self) -> bool:
        return self.finished and is_correct(SEPARATOR.join(self.steps), self.problem["answer"])


class Solver:
    """Samples with one model. Prompts are the problem as a user's turn, through the model's chat template."""

    def __init__(
        self, engine: Engine, tokenizer: Any, sampling: Sampling, max_tokens: int, batch_size: int, seed: int
    ) -> None:
        self._engine, self._tokenizer, self._sampling = engine, tokenizer, sampling
        self._max_tokens, self._batch_size, self._seed = max_tokens, batch_size, seed

    @property
    def generated(self) -> int:
        """Tokens drawn so far."""
        return self._engine.usage().generated

    def prompt(self, problem: WordProblem) -> list[int]:
        """Token ids of the problem's conversation up to where the assistant starts."""
        return encode_prompt(self._tokenizer, [{"role": "user", "content": problem["question"]}])

    def solve(self, problems: Sequence[WordProblem], count: int) -> list[Solution]:
        """`count` solutions of each problem, in order."""
        asked = [(problem, number) for problem in problems for number in range(count)]
        prompts = {problem["id"]: self.prompt(problem) for problem in problems}
        seeds = [self._stable(problem["id"], str(number)) for problem, number in asked]
        rows = self._complete([prompts[problem["id"]] for problem, _ in asked], seeds)
        return [self._read(problem, row) for (problem, _), row in zip(asked, rows, strict=True)]

    def roll_out(self, solutions: Sequence[Solution], count: int) -> None:
        """Fill in `shares`: behind each step but the last, `count` continuations; no further than the first step from
        which none arrives. Equal beginnings of one problem are rolled out once, so depth by depth over all solutions.
        """
        shares: dict[_Head, float] = {}
        for depth in range(max((len(one.ends or ()) for one in solutions), default=0)):
            live = [one for one in solutions if len(one.shares) == depth < _boundaries(one) and 0.0 not in one.shares]
            heads = {_head(one, depth): one.problem for one in live}
            shares |= self._arrivals({head: heads[head] for head in heads.keys() - shares.keys()}, count)
            for one in live:
                one.shares.append(shares[_head(one, depth)])

    def _arrivals(self, heads: dict[_Head, WordProblem], count: int) -> dict[_Head, float]:
        asked = [(head, number) for head in sorted(heads) for number in range(count)]
        prompts = {head: [*self.prompt(problem), *head[1]] for head, problem in heads.items()}
        seeds = [self._stable(head[0], str(head[1]), str(number)) for head, number in asked]
        rows = self._complete([prompts[head] for head, _ in asked], seeds, [len(head[1]) for head, _ in asked])
        arrived = dict.fromkeys(heads, 0)
        for (head, _), row in zip(asked, rows, strict=True):
            arrived[head] += self._read(heads[head], [*head[1], *row]).correct
        return {head: times / count for head, times in arrived.items()}

    def _complete(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], used: Sequence[int] | None = None
    ) -> list[list[int]]:
        """New tokens for each prompt, `used` of the `max_tokens` being in it already."""
        limits = [self._max_tokens - spent for spent in used] if used else [self._max_tokens] * len(prompts)
        outs = complete(self._engine, prompts, seeds, self._sampling, limits, self._batch_size)
        return [out.ids for out in outs]

    def _read(self, problem: WordProblem, ids: list[int]) -> Solution:
        finished = bool(ids) and ids[-1] in self._engine.end_ids
        text = self._tokenizer.decode(ids[:-1] if finished else ids, clean_up_tokenization_spaces=False)
        steps = split(text)
        end: End = "turn" if finished else "limit"
        if end == "limit" and len(steps) > 1 and not steps[-1]:
            steps, end = steps[:-1], "step"
        return Solution(problem, ids, steps, end, self._ends(steps, end, ids))

    def _ends(self, steps: list[str], end: End, ids: list[int]) -> list[int] | None:
        try:
            encoded = encode_steps(self._tokenizer, steps, SEPARATOR, ids[-1] if end == "turn" else 0, end)
        except ValueError:  # An empty step: nothing that a verifier could score.
            return None
        return encoded.ends if encoded.ids == ids else None

    def _stable(self, *parts: str) -> int:
        digest = hashlib.sha256("/".join([str(self._seed), *parts]).encode()).digest()
        return int.from_bytes(digest[:8], "big")


def _boundaries(one: Solution) -> int:
    """Steps behind which there is room for a continuation: all that are followed by another."""
    return len(one.ends) - 1 if one.ends else 0


def _head(one: Solution, depth: int) -> _Head:
    assert one.ends is not None
    return one.problem["id"], tuple(one.ids[: one.ends[depth]])
