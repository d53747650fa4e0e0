"""Rewards that a program checks: functions `(completions, answer, ...) -> a number per completion`, as TRL calls them.

A completion is a conversation of one assistant's turn. Nothing is learned here, so nothing can be flattered, but what
can be left out will be; what a reward does not see (style, length, a right answer by wrong steps) it does not teach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from acorn.answers import Answers, answer_of, reference_of
from acorn.problems import is_correct, parse_number, proven_share

Completions = Sequence[Sequence[dict[str, Any]]]
Reward = Callable[..., list[float]]


def reward_functions(names: Iterable[str], answers: Answers) -> list[Reward]:
    """The rewards `names`, in order; TRL logs each by its function's name. `answers` compares for `math`."""

    def math(completions: Completions, answer: Sequence[str], **_: Any) -> list[float]:
        """1 where what the completion says last has the reference's value: numbers, LaTeX, sets, intervals."""
        pairs = ((answer_of(_text(one)), reference_of(gold)) for one, gold in zip(completions, answer, strict=True))
        return [float(given is not None and answers.same(gold, given)) for given, gold in pairs]

    known: dict[str, Reward] = {"answer": answer, "math": math, "steps": steps}
    return [known[name] for name in names]


def answer(completions: Completions, answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the number behind the last `####` is exactly the reference's."""
    return [float(is_correct(_text(one), gold)) for one, gold in zip(completions, answer, strict=True)]


def steps(completions: Completions, **_: Any) -> list[float]:
    """The share of steps with equations that hold; it rewards no answer, so set it beside one that does.

    A step without an equation earns nothing: when it did, a model that GRPO trained on GSM8K stopped writing any in
    41 % of its answers.
    """
    return [proven_share(_text(one)) for one in completions]


def unreadable(gold: str, names: Sequence[str], answers: Answers) -> str | None:
    """Why the rewards `names` cannot be given for the reference answer `gold`; None where they can."""
    if "answer" in names:
        try:
            parse_number(gold)
        except ValueError:
            return f"the answer {gold!r} is no number, which the reward `answer` compares; use `math`"
    if "math" in names and not answers.readable(reference_of(gold)):
        return f"math-verify cannot read the answer {gold!r}"
    return None


def _text(completion: Sequence[dict[str, Any]]) -> str:
    return str(completion[-1]["content"])
