"""What it cost: seconds, tokens, floating-point operations and memory of every step, with totals."""

from __future__ import annotations

from collections.abc import Callable

from acorn.report.charts import bar
from acorn.report.markup import NONE, Html, count, duration, flops, head_number, number, size, table, tag
from acorn.report.read import Made, Run


def ledger(run: Run) -> Html:
    """One row a step, in the recipe's order."""
    built = run.built()
    longest = max((made.figure("seconds") or 0.0 for made in built), default=0.0) or 1.0
    head = ["step", "stage", head_number("time"), "", *map(head_number, ("tokens", "FLOP", "peak memory", "on disk"))]
    rows = [_row(made, longest) for made in run.made.values()]
    peak = max((made.figure("peak_memory_bytes") or 0.0 for made in built), default=0.0)
    foot = [
        tag("td", "all steps"), tag("td", ""), number(duration(_sum(built, "seconds"))), tag("td", ""),
        number(count(_sum(built, "tokens"))), number(flops(_sum(built, "flops"))),
        number(f"{size(peak)} at most"), number(size(sum(made.bytes() for made in built))),
    ]  # fmt: skip
    note = (
        "Time is that of the builds whose artifacts are shown, wherever and whenever they were made; "
        "waiting and the start of processes are not in it."
    )
    return tag("div", table(head, rows, foot, class_="ledger"), tag("p", note, class_="caption"))


def _row(made: Made, longest: float) -> list[Html]:
    link = tag("td", tag("a", made.name, href=f"#step-{made.name}"), class_="strong")
    if made.artifact is None:
        return [link, tag("td", made.step.stage.name), tag("td", "not built", colspan=6, class_="muted")]
    seconds = made.figure("seconds")
    return [
        link,
        tag("td", made.step.stage.name),
        _amount(made, "seconds", duration),
        tag("td", bar((seconds or 0.0) / longest, 1), class_="wide"),
        _amount(made, "tokens", count),
        _amount(made, "flops", flops),
        _amount(made, "peak_memory_bytes", size),
        number(size(made.bytes())),
    ]


def _amount(made: Made, name: str, show: Callable[[float], str]) -> Html:
    value = made.figure(name)
    return number(NONE if value is None else show(value))


def _sum(built: list[Made], name: str) -> float:
    return sum(made.figure(name) or 0.0 for made in built)
