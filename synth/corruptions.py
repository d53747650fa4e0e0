"""Hard negatives: a reference solution up to one step that goes wrong in a way a small model does.

Every kind but `off_by_1`, `off_by_10` and `final` writes an equation that holds, so arithmetic alone cannot tell. A row
ends at its wrong step: behind the first error there is nothing to learn, and a causal model does not see where a row
ends. So two swapped steps are the same row as a skipped one (`skipped`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from acorn.problems import WordProblem
from synth.step_check import Equation, compute, equation, exact_labels, reference_chain, split

_TRIES = 20
_T = TypeVar("_T")


class Place(NamedTuple):
    """A reference solution, and the step of it that is to go wrong."""

    question: str
    steps: list[str]
    """With the final `#### N`."""
    chain: list[Equation]
    at: int
    """0 to `len(chain)`; the last is the place of `#### N`."""

    @property
    def total(self) -> int:
        """What the steps before have come to."""
        return self.chain[self.at - 1].after if self.at else self.chain[0].before


def corrupt(problem: WordProblem, random: Random, kinds: Sequence[str]) -> tuple[str, list[str]] | None:
    """One of `kinds`, and the steps with it, the last one wrong; None where 20 draws found none that fits.

    Raises ValueError for a reference that is no chain (`reference_chain`).
    """
    steps, chain = split(problem["solution"]), reference_chain(problem)
    for _ in range(_TRIES):
        kind = _pick(random, kinds)
        place = Place(problem["question"], steps, chain, int(random.random() * (len(chain) + 1)))
        wrong = KINDS[kind](random, place)
        if wrong is None or "=-" in wrong:  # The world has no negative totals: too easily seen.
            continue
        made = [*steps[: place.at], wrong]
        if not exact_labels(problem, made, finished=True)[-1]:  # Zero times three is zero doubled.
            return kind, made
    return None


def _off_by(distance: int) -> Callable[[Random, Place], str | None]:
    def wrong(random: Random, place: Place) -> str | None:
        if not (one := _here(place)):
            return None
        return _write(place.steps[place.at], one._replace(after=one.after + _pick(random, (-distance, distance))))

    return wrong


def _operand(random: Random, place: Place) -> str | None:
    """Another number is added or taken, in words and equation or in the equation alone."""
    one = _here(place)
    if not one or one.operator == "*":
        return None
    number = _misread(random, one.operand)
    return _event(place.steps[place.at], one.before, one.operator, number, reword=random.random() < 0.7)


def _total(random: Random, place: Place) -> str | None:
    """The running total is copied wrong."""
    if not (one := _here(place)):
        return None
    return _event(place.steps[place.at], _misread(random, one.before), one.operator, one.operand)


def _operation(random: Random, place: Place) -> str | None:
    """Plus for minus, twice for three times."""
    if not (one := _here(place)):
        return None
    if one.operator == "*":
        return _event(place.steps[place.at], one.before, "*", 5 - one.operand)
    return _event(place.steps[place.at], one.before, "-" if one.operator == "+" else "+", one.operand)


def _skipped(random: Random, place: Place) -> str | None:
    """The next event comes too early; where there is none, the end does."""
    following = place.at + 1
    if following < len(place.chain):
        event = place.chain[following]
        return _event(place.steps[following], place.total, event.operator, event.operand)
    return f"#### {place.total}" if following == len(place.chain) and place.at else None


def _duplicated(random: Random, place: Place) -> str | None:
    """An event is taken a second time."""
    if place.at == 0:
        return None
    event = place.chain[place.at - 1]
    return _event(place.steps[place.at - 1], place.total, event.operator, event.operand)


def _distractor(random: Random, place: Place) -> str | None:
    """A number of the question that does not matter is added or taken."""
    one, used = _here(place), {event.operand for event in place.chain} | {place.chain[0].before}
    idle = [int(number) for number in re.findall(r"\d+", place.question) if int(number) not in used]
    if not one or one.operator == "*" or not idle:
        return None
    return _event(place.steps[place.at], one.before, one.operator, _pick(random, idle), reword=True)


def _final(random: Random, place: Place) -> str | None:
    """The answer is not the last result."""
    if place.at < len(place.chain):
        return None
    others = [event.after for event in place.chain[:-1]]
    return f"#### {_pick(random, [_misread(random, place.total), *others[-1:]])}"


KINDS: dict[str, Callable[[Random, Place], str | None]] = {
    "off_by_1": _off_by(1),
    "off_by_10": _off_by(10),
    "operand": _operand,
    "total": _total,
    "operation": _operation,
    "skipped": _skipped,
    "duplicated": _duplicated,
    "distractor": _distractor,
    "final": _final,
}


def _here(place: Place) -> Equation | None:
    return place.chain[place.at] if place.at < len(place.chain) else None


def _event(step: str, before: int, operator: str, operand: int, reword: bool = False) -> str:
    """`step` with another equation that holds; `reword` puts its operand into the words before the colon, too."""
    if reword:
        words, colon, rest = step.rpartition(":")
        step = re.sub(r"\d+", str(operand), words, count=1) + colon + rest
    return _write(step, Equation(before, operator, operand, compute(before, operator, operand)))


def _write(step: str, one: Equation) -> str:
    return step.replace(str(equation(step)), str(one))


def _misread(random: Random, number: int) -> int:
    """A number that is easily taken for `number`: off by 1 or 10, or two digits changed over."""
    digits = str(number)
    near = [number - 10, number - 1, number + 1, number + 10, int(digits[-1] + digits[1:-1] + digits[0])]
    return _pick(random, [other for other in near if other > 0 and other != number])


def _pick(random: Random, values: Sequence[_T]) -> _T:
    return values[int(random.random() * len(values))]
