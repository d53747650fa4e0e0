"""The page of `acorn scale`: the law through the trained sizes, its prediction for the next, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from acorn.law import Law
from acorn.report.charts import Series, line_chart
from acorn.report.markup import (
    NONE,
    Html,
    count,
    duration,
    figure,
    flops,
    head_number,
    join,
    number,
    percent,
    short,
    table,
    tag,
)
from acorn.report.page import mark, page

Figures = Mapping[str, Any]
UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
CURVE_POINTS = 60
NO_FLOOR = 1e-3
"""A floor below this share of the lowest loss is none."""
BEYOND = 1.6
"""How far the law is drawn past the size that it predicts."""


def render(figures: Figures) -> str:
    """The page's text, from the figures of `acorn.scale.run_series`."""
    head = tag("nav", tag("a", mark(), "acorn", href="#", class_="mark"))
    title = [tag("p", "acorn scale", class_="over"), tag("h1", f"{figures['recipe']}: the next size")]
    lead = tag("p", _sentence(figures), class_="lead")
    claim = tag("header", tag("div", *title, lead, class_="claim"), class_="headline single")
    parts = [
        claim,
        tag("section", tag("h2", "The law"), tag("p", _law(figures), class_="lead"), chart(figures)),
        tag("section", tag("h2", "The sizes"), tag("p", _sizes(figures), class_="lead"), _table(figures)),
    ]
    return page(f"{figures['recipe']}: acorn scale", head, tag("main", *parts))


def chart(figures: Figures) -> Html:
    """Loss over compute: sizes fitted, the law, the prediction with its range, and the measured point."""
    law, following = Law(**figures["law"]), figures["next"]
    unit, name = next((u for u in UNITS if following["compute"] >= 10 * u[0]), UNITS[-1])
    sizes = figures["sizes"]
    x = following["compute"] / unit
    low, high = sizes[0]["flops"], following["compute"]
    steps = [low * (BEYOND * high / low) ** (at / CURVE_POINTS) for at in range(CURVE_POINTS + 1)]
    lines = [Series("law", [(c / unit, law(c)) for c in steps], 0, dashed=True, drawn=True)]
    dots = [(one["flops"] / unit, one["loss"]) for one in sizes]
    lines.append(Series("fitted", dots, 1, tags=[f"d{one['depth']}" for one in sizes]))
    whisker = [(x, following["low"], following["high"])]
    lines.append(
        Series(
            "predicted",
            [(x, following["loss"])],
            2,
            intervals=whisker,
            tags=[f"d{following['depth']}"],
            hollow=True,
        )
    )
    if measured := figures["measured"]:
        lines.append(Series("measured", [(x, measured["loss"])], 3, tags=[""]))
    caption = "Validation loss, nats per token. Whisker: predictions with one fitted size left out."
    drawn = line_chart(lines, f"compute, {name}", log=True, log_x=True)
    return tag("figure", tag("figcaption", tag("b", "Loss over compute"), tag("span", caption)), drawn, class_="wide")


def _sentence(figures: Figures) -> Html:
    sizes, following, measured = figures["sizes"], figures["next"], figures["measured"]
    smaller = ", ".join(f"d{one['depth']}" for one in sizes)
    told: list[object] = [f"From {len(sizes)} sizes ({smaller}) the law predicts a loss of "]
    told += [tag("b", figure(following["loss"])), f" for d{following['depth']}, with "]
    told += [
        tag("b", f"{following['compute'] / sizes[-1]['flops']:.1f} times"),
        " the compute of the largest of them. ",
    ]
    if measured is None:
        return join([*told, "It is not trained yet."])
    error = tag("b", percent(abs(measured["error"])))
    direction = "too high" if measured["error"] > 0 else "too low"
    told += ["Trained, it reaches ", tag("b", figure(measured["loss"])), ": the prediction was ", error]
    return join([*told, f" {direction}."])


def _law(figures: Figures) -> str:
    law = figures["law"]
    least = min(one["loss"] for one in figures["sizes"])
    floor = f"{law['floor']:.4g} + " if law["floor"] > NO_FLOOR * least else ""
    worst = max(abs(one["residual"]) for one in figures["sizes"])
    return (
        f"loss = {floor}{law['scale']:.4g} x (C / {flops(law['unit'])}FLOP)^-{law['exponent']:.3g}, "
        f"fitted to {len(figures['sizes'])} sizes (Huber loss on the log of the loss, Hoffmann et al. 2022, "
        f"approach 3). Largest residual: {percent(worst, 2)}."
    )


def _sizes(figures: Figures) -> str:
    return (
        "Width, batch, learning rate and tokens of each follow from its depth alone (docs/scaling.md). One seed each; "
        "the row of the next size was predicted before it was trained."
    )


def _table(figures: Figures) -> Html:
    names = ("width", "parameters", "tokens", "compute", "time", "loss", "law", "error", "bits/byte")
    head = ["size", *map(head_number, names), "key"]
    law = Law(**figures["law"])
    rows = [_row(one, law(one["flops"]), one["residual"]) for one in figures["sizes"]]
    following, measured = figures["next"], figures["measured"]
    if measured:
        rows.append(_row(measured, following["loss"], measured["error"], "predicted"))
    else:
        blank = [number(NONE)] * 3
        compute = number(f"{flops(following['compute'])}FLOP")
        law_cell = number(f"{following['loss']:.4f}")
        start = [tag("td", f"d{following['depth']}", class_="strong"), number(f"{following['width']:,}")]
        rows.append([*start, *blank[:2], compute, *blank[:2], law_cell, *blank[:2], tag("td", "not trained yet")])
    return table(head, rows)


def _row(one: Figures, predicted: float, error: float, note: str = "") -> Sequence[Html]:
    name = tag("td", f"d{one['depth']}", tag("small", f" {note}") if note else None, class_="strong")
    figures = [f"{one['width']:,}", count(one["parameters"]), count(one["tokens"]), f"{flops(one['flops'])}FLOP"]
    figures += [duration(one["seconds"]), f"{one['loss']:.4f}", f"{predicted:.4f}", _signed(error)]
    figures.append(f"{one['bits_per_byte']:.4f}")
    return [name, *map(number, figures), tag("td", tag("code", short(one["key"])))]


def _signed(error: float) -> str:
    return f"{100 * error:+.2f} %" if math.isfinite(error) else NONE
