"""Charts as inline SVG: no library, no script needed to read them.

Coordinates are in a box about as wide as half the page, so that text keeps its size on a phone, where a chart takes
the whole width. Colours are CSS classes `c0`, `c1`, ... (see report.css), so light, dark and print share one drawing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from acorn.report.markup import Html, figure, join, percent, tag, text
from acorn.report.scales import Point, Scale, finite, scale_over, smoothed, spans_decades, spread, thinned

WIDTH, HEIGHT = 480.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 100.0, 10.0, 36.0
SMOOTH_FROM = 25
"""A curve of fewer points is drawn as it is, with its points marked."""


@dataclass(frozen=True)
class Series:
    """A named curve. `colour` is the number of a palette class."""

    name: str
    points: Sequence[Point]
    colour: int
    dashed: bool = False
    intervals: Sequence[tuple[float, float, float]] = ()
    """`(x, low, high)`, drawn as whiskers."""
    tags: Sequence[str] = ()
    """A word above each point. The points are then drawn alone, without a curve."""
    drawn: bool = False
    """Whether it is a function, which is drawn as it is, without marks or smoothing."""
    hollow: bool = False


def line_chart(
    series: Sequence[Series],
    x_name: str,
    log: bool | None = None,
    show: Callable[[float], str] = figure,
    log_x: bool = False,
    within: tuple[float, float] | None = None,
) -> Html:
    """Curves over a common x, each labelled at its right end; long ones faint as logged, with a smoothed line over.

    `log`: logarithmic y axis; by default where the values span a factor of 5. `log_x`: the same for x, which must be
    positive. `within`: ends of the y axis; by default those of the values. At least one value must be finite.
    """
    shown = [replace(one, points=kept) for one in series if (kept := finite(one.points))]
    heights = [y for one in shown for _, y in one.points]
    heights += [end for one in shown for _, *ends in one.intervals for end in ends]
    log = spans_decades(heights) if log is None and within is None else bool(log)
    first, last = min(px for one in shown for px, _ in one.points), max(px for one in shown for px, _ in one.points)
    x = Scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT, log=log_x)
    y = Scale(*within, HEIGHT - BOTTOM, TOP) if within else scale_over(heights, HEIGHT - BOTTOM, TOP, log=log)
    parts = [_y_axis(y, _plain if show is figure else show), _x_axis(x, x_name)]
    parts += [_curve(one, x, y) for one in shown]
    parts.append(_end_labels(shown, x, y, show))
    parts.append(tag("line", class_="cross", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM))
    extent = {"x0": x.low, "x1": x.high, "left": x.start, "right": x.end, "log": log_x}
    label = f"{', '.join(one.name for one in shown)} over {x_name}"
    return _svg(parts, label, "chart", HEIGHT, data_extent=json.dumps(extent), data_x=x_name)


@dataclass(frozen=True)
class Estimate:
    """A share with its interval, both in 0..1."""

    value: float
    low: float
    high: float
    note: str = ""


def interval_chart(groups: Sequence[str], series: Sequence[tuple[str, int, Sequence[Estimate | None]]]) -> Html:
    """Shares with intervals: one dot and whisker for each group and series, `(name, colour, one estimate a group)`."""
    width = (WIDTH - RIGHT - LEFT) / max(1, len(groups))
    y = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP + 4)
    parts = [_y_axis(y, lambda value: f"{100 * value:.0f}%")]
    for index, group in enumerate(groups):
        middle = LEFT + (index + 0.5) * width
        parts.append(tag("text", group, class_="tick", x=middle, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    step = min(14.0, width * 0.7 / max(1, len(series)))
    for index, (name, colour, estimates) in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * step
        places = [LEFT + (group + 0.5) * width + shift for group in range(len(groups))]
        parts.append(_dots(name, colour, groups, list(zip(places, estimates, strict=True)), y))
    ends = [(name, colour, _last(estimates)) for name, colour, estimates in series]
    parts.append(_labels([(name, colour, y(end.value)) for name, colour, end in ends if end]))
    return _svg(parts, f"{', '.join(name for name, *_ in series)} by {', '.join(groups)}", "chart", HEIGHT)


def bar(share: float, colour: int = 0) -> Html:
    """A bar for a table cell, filled to `share` of its length."""
    filled = max(1.0, 100 * min(1.0, share)) if share > 0 else 0.0
    parts = [tag("rect", width=100, height=8, rx=2, class_="track")]
    parts.append(tag("rect", width=filled, height=8, rx=2, class_=f"fill c{colour}"))
    return tag("svg", *parts, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def stack(parts: Sequence[tuple[str, float, int]]) -> Html:
    """One bar cut into named parts `(name, amount, colour)`, with its legend as text below."""
    total = sum(amount for _, amount, _ in parts) or 1.0
    drawn, legend, start = [], [], 0.0
    for name, amount, colour in parts:
        width = 100 * amount / total
        tip = f"{name}: {amount:,.0f} ({percent(amount / total)})"
        drawn.append(
            tag("rect", x=start, width=max(0.0, width - 0.25), height=8, class_=f"fill c{colour}", data_tip=tip)
        )
        legend.append(tag("span", tag("i", class_=f"swatch c{colour}"), f"{name} ", tag("b", f"{amount:,.0f}")))
        start += width
    svg = tag("svg", *drawn, class_="stack", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")
    return tag("div", svg, tag("div", *legend, class_="legend"), class_="stacked")


def sparkline(points: Sequence[Point], colour: int, name: str) -> Html:
    """A small curve without axes; its range is told in words beside it."""
    points = finite(points)
    heights = [y for _, y in points]
    x = Scale(points[0][0], max(points[-1][0], points[0][0] + 1e-9), 2.0, 158.0)
    y = scale_over(heights, 38.0, 3.0, log=spans_decades(heights, 50))
    extent = {"x0": x.low, "x1": x.high, "left": x.start, "right": x.end}
    curve = _polyline(thinned(points, 300), x, y, f"curve c{colour}", name)
    cross = tag("line", class_="cross", x1=0, x2=0, y1=0, y2=40)
    attributes = {"viewBox": "0 0 160 40", "class_": "spark", "data_extent": json.dumps(extent), "data_x": "step"}
    return tag("svg", curve, cross, role="img", aria_label=f"{name} over steps", **attributes)


def _svg(parts: Sequence[Html], label: str, kind: str, height: float, **attributes: str) -> Html:
    return tag(
        "svg", *parts, class_=kind, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=label, **attributes
    )


def _y_axis(y: Scale, show: Callable[[float], str]) -> Html:
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        parts.append(tag("text", show(value), class_="tick", x=LEFT - 7, y=at + 3.5, text_anchor="end"))
    if y.log:
        parts.append(tag("text", "log", class_="tick faint", x=LEFT - 7, y=HEIGHT - BOTTOM + 16, text_anchor="end"))
    return join(parts)


def _x_axis(x: Scale, name: str) -> Html:
    base = HEIGHT - BOTTOM
    parts = [tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base)]
    for value in x.ticks(5):
        at = x(value)
        parts.append(tag("line", class_="axis", x1=at, x2=at, y1=base, y2=base + 4))
        parts.append(tag("text", _thousands(value), class_="tick", x=at, y=base + 16, text_anchor="middle"))
    parts.append(
        tag("text", name, class_="tick name", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle")
    )
    return join(parts)


def _plain(value: float) -> str:
    return f"{value:,g}"


def _thousands(value: float) -> str:
    for divisor, unit in ((1e9, " B"), (1e6, " M"), (1e4, "")):
        if abs(value) >= divisor and unit:
            return f"{value / divisor:g}{unit}"
        if abs(value) >= divisor:
            return f"{value / 1e3:g} k"
    return f"{value:,g}"


def _curve(series: Series, x: Scale, y: Scale) -> Html:
    if series.tags:
        return _marks(series, x, y)
    if series.drawn:
        kind = f"curve c{series.colour}{' dashed' if series.dashed else ''}"
        return _polyline(series.points, x, y, kind, series.name)
    many = len(series.points) >= SMOOTH_FROM
    dashed = " dashed" if series.dashed else ""
    raw = _polyline(thinned(series.points), x, y, f"curve c{series.colour}{' raw' if many else dashed}", series.name)
    if many:
        line = _polyline(thinned(smoothed(series.points), 400), x, y, f"curve c{series.colour}{dashed}")
        return join([raw, line])
    dots = (tag("circle", class_=f"dot c{series.colour}", cx=x(px), cy=y(py), r=2.2) for px, py in series.points)
    return join([raw, *_whiskers(series, x, y), *dots])


def _whiskers(series: Series, x: Scale, y: Scale) -> list[Html]:
    return [
        tag("line", class_=f"whisker fine c{series.colour}", x1=x(px), x2=x(px), y1=y(low), y2=y(high))
        for px, low, high in series.intervals
    ]


def _marks(series: Series, x: Scale, y: Scale) -> Html:
    """Points with a word above each, and nothing between them."""
    parts = [_polyline(series.points, x, y, "curve hidden", series.name), *_whiskers(series, x, y)]
    kind = f"{'ring' if series.hollow else 'dot'} c{series.colour}"
    for (px, py), word in zip(series.points, series.tags, strict=True):
        parts.append(tag("circle", class_=kind, cx=x(px), cy=y(py), r=3.6))
        parts.append(tag("text", word, class_="tick", x=x(px), y=y(py) - 9, text_anchor="middle"))
    return join(parts)


def _polyline(points: Sequence[Point], x: Scale, y: Scale, kind: str, name: str | None = None) -> Html:
    """With a `name`, it carries its values for the pointer to read: `data-points` is [[x, y], ...] as logged."""
    drawn = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points)
    values = json.dumps([[px, float(f"{py:.6g}")] for px, py in points], separators=(",", ":"))
    return tag("polyline", class_=kind, points=drawn, data_name=name, data_points=values if name else None)


def _end_labels(series: Sequence[Series], x: Scale, y: Scale, show: Callable[[float], str]) -> Html:
    ends = []
    for one in series:
        points = smoothed(one.points) if len(one.points) >= SMOOTH_FROM and not one.drawn else one.points
        single = not one.drawn and len(one.tags) < 2
        ends.append((f"{one.name} {show(points[-1][1])}" if single else one.name, one.colour, y(points[-1][1])))
    return _labels(ends)


def _labels(ends: Sequence[tuple[str, int, float]]) -> Html:
    """`(text, colour, height)` beside the right end of each curve, moved apart where they would overlap."""
    places = spread([at for *_, at in ends], 14.0, TOP + 4, HEIGHT - BOTTOM)
    return join(
        tag("text", name, class_=f"label c{colour}", x=WIDTH - RIGHT + 8, y=at + 4)
        for (name, colour, _), at in zip(ends, places, strict=True)
    )


def _dots(
    name: str, colour: int, groups: Sequence[str], places: Sequence[tuple[float, Estimate | None]], y: Scale
) -> Html:
    found = [(at, estimate) for at, estimate in places if estimate]
    line = " ".join(f"{at:.1f},{y(estimate.value):.1f}" for at, estimate in found)
    parts = [tag("polyline", class_=f"curve c{colour} thin", points=line)]
    for group, (at, estimate) in zip(groups, places, strict=True):
        if estimate is None:
            continue
        span = f"[{percent(estimate.low)}, {percent(estimate.high)}]"
        tip = f"{name}, {group}: {percent(estimate.value)} {span}{estimate.note}"
        whisker = tag("line", class_=f"whisker c{colour}", x1=at, x2=at, y1=y(estimate.low), y2=y(estimate.high))
        dot = tag("circle", class_=f"dot c{colour}", cx=at, cy=y(estimate.value), r=4.0)
        target = tag(
            "rect",
            class_="target",
            x=at - 7,
            width=14,
            y=y(estimate.high) - 6,
            height=12 + y(estimate.low) - y(estimate.high),
        )
        parts.append(tag("g", whisker, dot, target, data_tip=tip))
    return join(parts)


def _last(estimates: Sequence[Estimate | None]) -> Estimate | None:
    return next((estimate for estimate in reversed(estimates) if estimate), None)


def legend(names: Sequence[tuple[str, int]]) -> Html:
    """Swatches with names, where a chart has no room for labels."""
    return tag(
        "div",
        *(tag("span", tag("i", class_=f"swatch c{colour}"), text(name)) for name, colour in names),
        class_="legend",
    )
