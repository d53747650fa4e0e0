"""The chain as a drawing: one box a step, in columns from raw data to the answer, edges named by their role."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from acorn.recipe import Step
from acorn.report.layers import Layout, lay_out
from acorn.report.markup import Html, figure, join, short, tag
from acorn.report.read import Made, Run

BOX_WIDTH, BOX_HEIGHT, LANE_HEIGHT, ROOM, GAP = 118.0, 62.0, 8.0, 50.0, 18.0
FAMILIES = {"model": "model", "gguf": "result", "evaluation": "result", "transcript": "result", "release": "result"}
"""Kinds of artifact by what they are to a person; the others are data."""


def chain(run: Run) -> Html:
    """The section of the lineage graph. Every box leads to its step's record at the end of the page."""
    layout = lay_out(_needs(run), BOX_HEIGHT, LANE_HEIGHT, GAP)
    edges = [_edge(layout, source, step, role) for source, step, role in _edges(run)]
    boxes = [_box(layout, run, name) for name in layout.column]
    width = layout.columns * (BOX_WIDTH + ROOM) - ROOM + 4
    lanes = ((at, LANE_HEIGHT if layout.column[name] != c else BOX_HEIGHT) for (name, c), at in layout.heights.items())
    height = max((at + size / 2 for at, size in lanes), default=0.0) + 4
    drawing = tag(
        "svg", tag("g", *edges, transform="translate(2 2)"), tag("g", *boxes, transform="translate(2 2)"),
        class_="chain", viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}", height=f"{height:.0f}",
        role="img", aria_label=f"The {len(run.made)} steps of {run.recipe.name} and what passes between them",
    )  # fmt: skip
    return tag("div", drawing, class_="scroll chain-frame", tabindex="0")


def _needs(run: Run) -> dict[str, list[str]]:
    """name -> what it needs; artifacts from outside the recipe (`@name`) are nodes too."""
    outside: dict[str, list[str]] = {source: [] for _, source in _inputs(run) if source.startswith("@")}
    return {**outside, **{name: list(dict.fromkeys(made.step.inputs.values())) for name, made in run.made.items()}}


def _inputs(run: Run) -> Iterator[tuple[Step, str]]:
    for made in run.made.values():
        for source in made.step.inputs.values():
            yield made.step, source


def _edges(run: Run) -> Iterator[tuple[str, Step, str]]:
    for made in run.made.values():
        for role, source in made.step.inputs.items():
            yield source, made.step, role


def _box(layout: Layout, run: Run, name: str) -> Html:
    left = layout.column[name] * (BOX_WIDTH + ROOM)
    top = layout.heights[name, layout.column[name]] - BOX_HEIGHT / 2
    place = f"translate({left:.1f} {top:.1f})"
    if name not in run.made:
        parts = [_frame("outside"), _line(name, 25, "name"), _line("from the registry", 43, "small")]
        return tag("g", *parts, transform=place, data_tip=f"{name}: an artifact made outside this recipe")
    made = run.made[name]
    parts = [_frame("box" if made.artifact else "box missing"), _stripe(made.kind), _line(name, 20, "name")]
    if made.artifact is None:
        parts += [_line(made.kind, 36, "small"), _line("not built", 52, "small")]
    else:
        seconds = made.figure("seconds")
        parts += [_line(made.kind, 36, "small"), _line(short(made.artifact.key)[:8], 52, "key")]
        if seconds is not None:
            parts.append(tag("text", _brief(seconds), class_="small", x=BOX_WIDTH - 9, y=52, text_anchor="end"))
        if made.stale:
            parts.append(tag("circle", class_="stale", cx=BOX_WIDTH - 11, cy=13, r=4))
    group = tag("g", *parts, transform=place, class_="node", data_tip=_details(made), data_step=name)
    return tag("a", group, href=f"#step-{name}", aria_label=f"{name}: {made.kind}")


def _brief(seconds: float) -> str:
    """A duration in at most seven characters."""
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def _frame(kind: str) -> Html:
    return tag("rect", class_=kind, width=BOX_WIDTH, height=BOX_HEIGHT, rx=7)


def _stripe(kind: str) -> Html:
    return tag("rect", class_=f"stripe {FAMILIES.get(kind, 'data')}", y=10, width=3.5, height=BOX_HEIGHT - 20, rx=1.75)


def _line(words: str, y: float, kind: str) -> Html:
    most = 17 if kind == "name" else 22
    shown = words if len(words) <= most else f"{words[: most - 1]}…"
    return tag("text", shown, class_=kind, x=12, y=y)


def _details(made: Made) -> str:
    """What the pointer is told about a step."""
    lines = [f"{made.name} ({made.step.stage.name} → {made.kind})"]
    if made.artifact is None:
        return "\n".join([*lines, "not built"])
    lines.append(f"key {made.artifact.key}")
    if made.stale:
        lines.append(f"older than the recipe: {made.stale}")
    metrics = made.artifact.manifest.metrics
    lines += [f"{name} {figure(float(value))}" for name, value in list(metrics.items())[:6]]
    return "\n".join(lines)


def _edge(layout: Layout, source: str, step: Step, role: str) -> Html:
    route = layout.route(source, step.name)
    kind = "".join(step.stage.kinds_of(role)[:1])
    tail = 0.0 if role == kind else 7.0 + 5.2 * len(role[:7])  # room for the name of the role
    points = [(node, layout.heights[node]) for node in route]
    points[-1] = (points[-1][0], points[-1][1] + _port(layout, source, step))
    path = []
    for (left, y0), (right, y1) in pairwise(points):
        x0 = left[1] * (BOX_WIDTH + ROOM) + BOX_WIDTH
        x1 = right[1] * (BOX_WIDTH + ROOM)
        path.append(f"{'M' if left == route[0] else 'L'}{x0:.1f} {y0:.1f}")
        end = x1 - tail if right == route[-1] else x1
        path.append(f"C{(x0 + end) / 2:.1f} {y0:.1f} {(x0 + end) / 2:.1f} {y1:.1f} {end:.1f} {y1:.1f}H{x1:.1f}")
    x, y = layout.column[step.name] * (BOX_WIDTH + ROOM), points[-1][1]
    parts = [
        tag("path", class_=f"edge {FAMILIES.get(kind, 'data')}", d=" ".join(path)),
        tag("path", class_="reach", d=" ".join(path), data_tip=f"{source} → {step.name}\nas {role} ({kind})"),
        tag("path", class_="arrow", d=f"M{x - 5:.1f} {y - 3:.1f}L{x:.1f} {y:.1f}L{x - 5:.1f} {y + 3:.1f}z"),
    ]
    if role != kind:  # the source's box names the kind already
        parts.append(tag("text", role[:7], class_="role", x=x - 7, y=y - 2.5, text_anchor="end"))
    return tag("g", join(parts), class_="link", data_from=source, data_to=step.name)


def _port(layout: Layout, source: str, step: Step) -> float:
    """Where on the left side of its box an edge arrives: in the order in which the edges come in."""
    sources = list(dict.fromkeys(step.inputs.values()))
    sources.sort(key=lambda name: layout.heights[layout.route(name, step.name)[-2]])
    return (sources.index(source) - (len(sources) - 1) / 2) * min(14.0, 52.0 / max(1, len(sources)))
