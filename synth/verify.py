"""Is an answer right? Decided by executing it: the final number, then every equation on the way."""

from __future__ import annotations

import re
from typing import NamedTuple

from acorn.problems import final_answer, first_wrong_step, is_correct, split_steps

PARSE_FAILURES = ("empty", "no_answer")
"""Reasons that mean: nothing could be read from the answer."""

_HAS_RESULT = re.compile(r"=\s*\$?-?\d")


def reason_to_reject(text: str | None, answer: str | None, finished: bool = True) -> str | None:
    """Why an answer is no good, or None.

    `answer`: the number it has to end with, or None if only its equations can be checked. In this order: `empty`,
    `no_answer` (no `#### N`), `unfinished` (cut off by the token limit), `wrong_answer`, `wrong_step`.
    """
    if not text or not text.strip():
        return "empty"
    if answer is not None and final_answer(text) is None:
        return "no_answer"
    if not finished:
        return "unfinished"
    if answer is not None and not is_correct(text, answer):
        return "wrong_answer"
    if first_wrong_step(text) is not None:
        return "wrong_step"
    return None


class Score(NamedTuple):
    """Compared from left to right."""

    correct: bool
    """The final answer is right."""
    steps: float
    """Share of steps that compute something right before the first wrong one, 0 to 1."""
    finished: bool
    """Ended by itself within the token limit."""


def score(text: str, answer: str, reference: str, finished: bool) -> Score:
    """Score of one sample.

    The share is over the longer of the sample and the reference solution: two right steps of five are 0.4, whether
    the sample breaks off or goes wrong there. A step without an equation computes nothing and counts as not right,
    or noise would beat an honest mistake.
    """
    steps = split_steps(text)
    wrong = first_wrong_step(text)
    right = [step for step in steps[:wrong] if _HAS_RESULT.search(step)]
    length = max(len(steps), len(split_steps(reference)), 1)
    return Score(is_correct(text, answer), len(right) / length, finished)
