"""A small world for the algorithms: a token is a letter, the delimiter, the end, or an answer; no model.

0 ends a solution, 1 is the delimiter, 2 to 9 are letters, and n >= 10 reads `#### n`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from acorn.answers import Answers
from engine.fake import FakeEngine, FakeVerifier, Next, Tree
from engine.interface import Sampling, StepOut
from search.budget import Budget
from search.methods import search
from search.options import Options
from search.setup import Setup
from search.tree import Outcome

END, DELIMITER = 0, 1
PROMPT = [7, 8]


class Letters:
    """`search.steps.StepSplitter` for these tokens."""

    stops = ((DELIMITER,),)

    def split(self, ids: Sequence[int]) -> list[list[int]]:
        steps: list[list[int]] = [[]]
        for token in ids:
            steps[-1].append(token)
            if token == DELIMITER:
                steps.append([])
        return [step for step in steps if step]

    def text(self, ids: Sequence[int]) -> str:
        special = {END: "", DELIMITER: "\n\n"}
        return "".join(special.get(token, f"#### {token}\n" if token >= 10 else f"s{token} ") for token in ids)


class WatchedEngine(FakeEngine):
    """Remembers its calls and its handles."""

    def __init__(self, script: Next | Tree, context: int = 1 << 20) -> None:
        super().__init__(script, end_ids={END}, context=context)
        self.opened: list[list[int]] = []
        self.steps: list[int] = []
        self.handles: list[Any] = []

    def open(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Any]:
        self.opened += [list(prompt) for prompt in prompts]
        return self._remember(super().open(prompts, seeds))

    def fork(self, seq: Any, seeds: Sequence[int]) -> list[Any]:
        return self._remember(super().fork(seq, seeds))

    def step(
        self,
        seqs: Sequence[Any],
        sampling: Sampling,
        max_tokens: int | Sequence[int],
        stop: Sequence[Sequence[int]] = (),
    ) -> list[StepOut]:
        self.steps.append(len(seqs))
        return super().step(seqs, sampling, max_tokens, stop)

    def _remember(self, seqs: list[Any]) -> list[Any]:
        self.handles += seqs
        return seqs


class WatchedVerifier(FakeVerifier):
    """Scores by the last token that is a letter or an answer, and remembers the steps it was given."""

    def __init__(self, scores: dict[int, float] | Callable[[Sequence[int]], float]) -> None:
        super().__init__(scores if callable(scores) else lambda ids: _by_last(scores, ids))
        self.seen: list[list[int]] = []
        self.calls = 0
        self.handles: list[Any] = []

    def open(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        self.handles += (seqs := super().open(prompts))
        return seqs

    def fork(self, seq: Any, count: int) -> list[Any]:
        self.handles += (seqs := super().fork(seq, count))
        return seqs

    def read(self, seqs: Sequence[Any], paths: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        self.calls += 1
        return super().read(seqs, paths)

    def extend(self, seqs: Sequence[Any], steps: Sequence[Sequence[int]]) -> list[float]:
        self.seen += [list(step) for step in steps]
        return super().extend(seqs, steps)


def _by_last(scores: dict[int, float], ids: Sequence[int]) -> float:
    told = [token for token in ids if token not in (END, DELIMITER)]
    return scores.get(told[-1], 0.5)


def grown(
    options: Options,
    engine: WatchedEngine,
    verifier: WatchedVerifier | None = None,
    seeds: Sequence[int] = (0,),
    batch: int = 8,
    aggregation: Any = "last",
    **limits: Any,
) -> list[Outcome]:
    """Outcomes of a search with one problem for each of `seeds`, all with the same prompt."""
    budget = Budget(**{"max_tokens": 32, **limits})
    setup = Setup(budget, Letters(), Answers(), aggregation=aggregation)
    return search(engine, verifier, [PROMPT] * len(seeds), seeds, options, setup, batch)


def tree(*solutions: Sequence[int]) -> WatchedEngine:
    """An engine that knows these solutions of the prompt; one given twice is twice as probable."""
    return WatchedEngine(Tree({tuple(PROMPT): solutions}))
