"""Rewards that a program checks: functions `(completions, answer, ...) -> a number per completion`, as TRL calls them.

A completion is a conversation of one assistant's turn. Nothing is learned here, so nothing can be flattered; what such
a reward does not see (style, length, a right answer by wrong steps) it does not teach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from acorn.problems import first_wrong_step, is_correct, parse_number, split_steps

Completions = Sequence[Sequence[dict[str, Any]]]
Reward = Callable[..., list[float]]

TIMEOUT_SECONDS = 5
"""Of math-verify for one expression: what a model writes can be arbitrarily hard to simplify."""


def answer(completions: Completions, answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the number behind the last `####` is exactly the reference's."""
    return [float(is_correct(_text(one), gold)) for one, gold in zip(completions, answer, strict=True)]


def steps(completions: Completions, **_: Any) -> list[float]:
    """1 where there is a step and every equation holds; it rewards no answer, so set it beside one that does."""
    return [float(bool(split_steps(_text(one))) and first_wrong_step(_text(one)) is None) for one in completions]


def math(completions: Completions, answer: Sequence[str], **_: Any) -> list[float]:
    """1 where math-verify finds the completion's last expression equal to the reference's: LaTeX, sets, intervals."""
    from math_verify import parse, verify

    found = []
    for one, gold in zip(completions, answer, strict=True):
        given = parse(_text(one), parsing_timeout=TIMEOUT_SECONDS)
        found.append(float(bool(given) and verify(reference(gold), given, timeout_seconds=TIMEOUT_SECONDS)))
    return found


REWARDS: dict[str, Reward] = {"answer": answer, "math": math, "steps": steps}


def reference(gold: str) -> list[Any]:
    """A reference answer as math-verify has it; empty where it cannot read it. It takes LaTeX between dollars alone."""
    from math_verify import parse

    text = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
    return list(parse(text, parsing_timeout=TIMEOUT_SECONDS))


def unreadable(gold: str, names: Sequence[str]) -> str | None:
    """Why the rewards `names` cannot be given for the reference answer `gold`; None where they can."""
    if "answer" in names:
        try:
            parse_number(gold)
        except ValueError:
            return f"the answer {gold!r} is no number, which the reward `answer` compares; use `math`"
    if "math" in names and not reference(gold):
        return f"math-verify cannot read the answer {gold!r}"
    return None


def _text(completion: Sequence[dict[str, Any]]) -> str:
    return str(completion[-1]["content"])
