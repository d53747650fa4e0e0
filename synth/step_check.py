"""Is each step of a solution right? Decided exactly, against the reference chain of the procedural world.

A step must carry one equation that holds and that is the reference's at its place: the running total, the operation,
the operand and the result. Words are not judged. An equation that holds and is not the one asked for (another operand,
a step taken twice) is as wrong as a miscalculated one: arithmetic alone cannot tell, the reference can.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from acorn.problems import WordProblem, final_answer, parse_number

SEPARATOR = "\n\n"
"""Between two steps of a solution."""

_EQUATION = re.compile(r"(?<![\d=+*-])(\d+)([-+*])(\d+)=(-?\d+)(?![\d=+*-])")


class Equation(NamedTuple):
    """`before operator operand = after`, as it is written."""

    before: int
    operator: str
    operand: int
    after: int

    @property
    def holds(self) -> bool:
        return self.after == compute(self.before, self.operator, self.operand)

    def __str__(self) -> str:
        return f"{self.before}{self.operator}{self.operand}={self.after}"


def compute(before: int, operator: str, operand: int) -> int:
    return {"+": before + operand, "-": before - operand, "*": before * operand}[operator]


def split(text: str) -> list[str]:
    """Steps of a solution, the final `#### N` among them, nothing stripped: joined they are the text again."""
    return text.split(SEPARATOR)


def equation(step: str) -> Equation | None:
    """The one equation of a step; None where there is none or more than one."""
    found = _EQUATION.findall(step)
    if len(found) != 1:
        return None
    before, operator, operand, after = found[0]
    return Equation(int(before), operator, int(operand), int(after))


def reference_chain(problem: WordProblem) -> list[Equation]:
    """The reference's equations. Raises ValueError where it is no chain of single equations that ends in the answer."""
    *steps, last = split(problem["solution"])
    chain = [equation(step) for step in steps]
    read = [one for one in chain if one is not None]
    linked = all(before.after == after.before for before, after in pairwise(read))
    ends = bool(read) and final_answer(last) == read[-1].after == parse_number(problem["answer"])
    if len(read) < len(chain) or not linked or not ends or not all(one.holds for one in read):
        raise ValueError(
            f"problem {problem['id']}: `label: exact` needs a reference of steps with one equation each, every one "
            "going on from the result before it, as the stage `problems` writes them; for other data use "
            "`label: {type: rollouts}`"
        )
    return read


def exact_labels(problem: WordProblem, steps: Sequence[str], finished: bool) -> list[bool]:
    """Whether each of `steps` is right and all before it are; after the first wrong one every step is False.

    The final `#### N` is a step, right only behind the whole chain; a step behind it is wrong. The last step of a
    solution that did not end by itself (`finished`) is wrong: it is cut, or goes on where it should have ended.
    """
    chain = reference_chain(problem)
    labels: list[bool] = []
    for index, step in enumerate(steps):
        cut = not finished and index == len(steps) - 1
        labels.append(all(labels) and not cut and _is_right(step, index, chain))
    return labels


def _is_right(step: str, index: int, chain: Sequence[Equation]) -> bool:
    if index == len(chain):
        return step.lstrip().startswith("####") and final_answer(step) == chain[-1].after
    found = equation(step)
    if found is None or index > len(chain) or "####" in step:
        return False
    return found.holds and found in (chain[index], _commuted(chain[index]))


def _commuted(one: Equation) -> Equation:
    """`5+74=79` for `74+5=79`: the same step."""
    swappable = one.operator in "+*"
    return Equation(one.operand, one.operator, one.before, one.after) if swappable else one
