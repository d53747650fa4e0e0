"""What a search returns: the tree it grew, its candidate solutions, its answer, and what it spent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from search.budget import Spent

Status = Literal["live", "finished", "cut"]
"""`finished`: an end token came. `cut`: a limit came first, so it is no solution and never votes."""


@dataclass
class Node:
    """One step."""

    parent: int
    """Index in the tree's list of nodes; -1 is the prompt."""
    ids: list[int]
    """The tokens of this step alone, delimiter and end token included."""
    score: float | None = None
    """The verifier's probability that the step is right; None for a step that was not scored (no verifier, blank)."""
    ahead: float | None = None
    """Score of the solution looked ahead from here, where the method looks ahead."""
    status: Status = "live"


@dataclass
class Candidate:
    """One solution that the search ended with."""

    node: int
    """Its last step in the tree."""
    text: str
    answer: str | None
    """Its final answer as written; None where none can be read."""
    finished: bool
    step_scores: list[float]
    score: float
    """`step_scores` by the search's aggregation; 0 for none."""
    generated: int
    """Tokens of this solution, steps shared with other candidates included."""
    scored: int
    weight: float | None = None
    """What the method itself weighs the vote by, where that is not the score (DeepConf's confidence)."""


@dataclass
class Outcome:
    """What one search found."""

    answer: str | None
    """None where no finished solution has a readable answer."""
    chosen: int | None
    """Index of the candidate that stands for the answer."""
    candidates: list[Candidate]
    nodes: list[Node]
    spent: Spent = field(default_factory=Spent)
