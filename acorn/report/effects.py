"""What each stage did: every evaluated model against the one it was made from, over the same items.

Compared are pairs, item by item, so that what makes an item hard falls out. Beside the score stand two measures that
move earlier: whether an answer ends with a number at all, and the share of its steps whose equations hold. A model that
was evaluated together with another of the same origin, and of the same stage or on the same rows (a control), is held
against that one, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acorn.problems import final_answer, proven_share
from acorn.report.evaluation import PROBLEMS, Results
from acorn.report.markup import NONE, Html, head_number, join, number, table, tag
from acorn.report.read import Row, Run

_PROSE = "acorn:prose"
_NO_ROWS = {"model", "tokenizer", "teacher", "gate"}


@dataclass(frozen=True)
class Measure:
    """A mean over items; `item` gives a sample's value and weight."""

    name: str
    task: str
    item: Callable[[Row], tuple[float, float]]
    scale: float = 100.0
    """Shares are told in points of a hundred."""
    less_is_better: bool = False


@dataclass(frozen=True)
class Effect:
    """A paired difference of two weighted means, with its standard error."""

    difference: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.difference - 1.96 * self.error, self.difference + 1.96 * self.error


def _solved(row: Row) -> tuple[float, float]:
    return float(row["correct"]), 1.0


def _over_answers(holds: Callable[[str], float]) -> Callable[[Row], tuple[float, float]]:
    def item(row: Row) -> tuple[float, float]:
        answers = [str(each or "") for each in row.get("predictions") or [row["prediction"]]]
        return sum(map(holds, answers)) / len(answers), 1.0

    return item


def _bits(row: Row) -> tuple[float, float]:
    return -float(row["logprob"]) / math.log(2) / float(row["bytes"]), float(row["bytes"])


MEASURES = (
    Measure("solved", PROBLEMS, _solved),
    Measure("ends with a number", PROBLEMS, _over_answers(lambda answer: final_answer(answer) is not None)),
    Measure("steps that hold", PROBLEMS, _over_answers(proven_share)),
    Measure("bits per byte", _PROSE, _bits, scale=1.0, less_is_better=True),
)


def effects(run: Run, results: Results) -> Html | None:
    """A row for each comparison, a column for each measure that both models have items of; None without any."""
    pairs = list(compared(run, results))
    samples = {role: results.made.rows(f"samples/{role}.jsonl") for pair in pairs for role in pair}
    found = [(pair, [effect_of(each, *(samples[role] for role in pair)) for each in MEASURES]) for pair in pairs]
    shown = [place for place in range(len(MEASURES)) if any(row[place] for _, row in found)]
    if not shown:
        return None
    head = ["", *(head_number(MEASURES[place].name) for place in shown)]
    rows = [
        [f"{role} against {other}", *(_cell(MEASURES[place], row[place]) for place in shown)]
        for (role, other), row in found
    ]
    note = (
        "What each stage changed, paired over the items: difference with 95 % interval, shares in points of a hundred. "
        "No effect: the interval holds 0, so none was measured."
    )
    return tag("div", table(head, rows, class_="effects"), tag("p", note, class_="caption"))


def compared(run: Run, results: Results) -> Iterator[tuple[str, str]]:
    """`(role, other)`: each evaluated model and the evaluated ones it was made from, then its controls."""
    role_of = {results.made.step.inputs[role]: role for role in results.models if role in results.made.step.inputs}
    origins = {step: _origins(run, step, role_of) for step in role_of}
    for step, role in role_of.items():
        for origin in origins[step]:
            yield role, role_of[origin]
        for control in role_of:
            if control == step:
                break
            if origins[step] and origins[control] == origins[step] and _alike(run, control, step):
                yield role, role_of[control]


def _origins(run: Run, step: str, evaluated: Mapping[str, str]) -> list[str]:
    """The nearest step behind the inputs `model` that was evaluated, too; of a soup, what went into it."""
    if (made := run.made.get(step)) and made.step.stage.name == "soup":
        return [source for source in made.step.inputs.values() if source in evaluated]
    while step in run.made and (step := run.made[step].step.inputs.get("model", "")):
        if step in evaluated:
            return [step]
    return []


def _alike(run: Run, control: str, step: str) -> bool:
    """Whether two steps are of one stage, or share an input beside the model and its tokenizer: the same rows."""
    one, other = (run.made.get(each) for each in (control, step))
    if one is None or other is None:
        return False
    rows = [{each.step.inputs[role] for role in each.step.inputs.keys() - _NO_ROWS} for each in (one, other)]
    return one.step.stage.name == other.step.stage.name or bool(rows[0] & rows[1])


def effect_of(measure: Measure, rows: Sequence[Row], others: Sequence[Row]) -> Effect | None:
    """The paired difference over the items of both; None for fewer than two.

    The mean is a ratio of sums where weights differ (bits per byte); its error is then that of the ratio, linearised
    (Cochran, Sampling Techniques, section 6.4).
    """
    mine, theirs = (_items(measure, given) for given in (rows, others))
    ids = [each for each in mine if each in theirs]
    if len(ids) < 2:
        return None
    weights = [mine[each][1] for each in ids]
    differences = [mine[each][0] - theirs[each][0] for each in ids]
    total = math.fsum(weights)
    mean = math.fsum(d * w for d, w in zip(differences, weights, strict=True)) / total
    spread = math.fsum((w * (d - mean)) ** 2 for d, w in zip(differences, weights, strict=True))
    return Effect(mean, math.sqrt(spread * len(ids) / (len(ids) - 1)) / total)


def _items(measure: Measure, rows: Sequence[Row]) -> dict[Any, tuple[float, float]]:
    return {row["id"]: measure.item(row) for row in rows if row.get("task") == measure.task}


def _digits(measure: Measure, error: float) -> int:
    """Decimals: those of a share in points; of others, two that the error says something about."""
    if measure.scale > 1:
        return 1
    return min(8, max(3, 1 - math.floor(math.log10(error)))) if error else 3


def _cell(measure: Measure, effect: Effect | None) -> Html:
    if effect is None:
        return number(NONE)
    digits = _digits(measure, effect.error)
    low, high = (measure.scale * end for end in effect.interval)
    shown = f"{measure.scale * effect.difference:+.{digits}f}"
    if low <= 0 <= high:
        kind = "no effect"
    else:
        kind = "better" if (effect.difference < 0) == measure.less_is_better else "worse"
    words = f" [{low:.{digits}f}, {high:.{digits}f}] {kind}"
    return number(join([shown, tag("small", words)]), class_=kind.replace(" ", "-"))
