"""What the searches of all problems share: limits, how text is cut and read, how tokens are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.interface import Sampling
from search.budget import Budget
from search.votes import Aggregation


class Splitter(Protocol):
    """What a search needs of `search.steps.StepSplitter`."""

    @property
    def stops(self) -> tuple[tuple[int, ...], ...]: ...
    def split(self, ids: Sequence[int]) -> list[list[int]]: ...
    def text(self, ids: Sequence[int]) -> str: ...


class Reader(Protocol):
    """What a search needs of `acorn.answers.Answers`."""

    def extract(self, text: str) -> str | None: ...
    def same(self, first: str, second: str) -> bool: ...


@dataclass(frozen=True)
class Setup:
    """What the searches of all problems share."""

    budget: Budget
    splitter: Splitter
    reader: Reader
    sampling: Sampling = field(default_factory=Sampling)
    aggregation: Aggregation = "min"
