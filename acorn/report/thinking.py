"""What thinking longer brings: accuracy against tokens for every search, beside the larger model's one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from acorn.report.charts import Series, line_chart
from acorn.report.evaluation import missing
from acorn.report.markup import NONE, Html, count, head_number, join, number, percent, table, tag
from acorn.report.read import Made, Run, parameters

Figures = Sequence[dict[str, Any]]
"""Rows of a search's `results.json`: a method at one n, over all problems or one level."""

GREEDY = "greedy"
BASELINE_COLOUR = 7


def thinking(run: Run) -> Html | None:
    """The section on test-time search; None where no search belongs to the recipe."""
    made = run.of_kind("search")
    if not made:
        return None
    built = [(one, results) for one in made if (results := one.json("results.json"))]
    baselines = [(one, results) for one, results in built if _only_greedy(results)]
    searches = [(one, results) for one, results in built if not _only_greedy(results)]
    if not searches:
        return missing(made)
    parts = []
    for one, results in searches:
        asked_alike = [other for other in baselines if other[0].step.inputs["corpus"] == one.step.inputs["corpus"]]
        parts.append(_search(run, one, results, asked_alike))
    for comparison in run.of_kind("search_comparison"):
        parts += [_differences(table) for table in (comparison.json("results.json") or {"tables": []})["tables"]]
    return join([*parts, *_policies(run)])


def _only_greedy(results: dict[str, Any]) -> bool:
    return {row["method"] for row in results["methods"]} == {GREEDY}


def _search(run: Run, made: Made, results: dict[str, Any], baselines: Sequence[tuple[Made, Any]]) -> Html:
    levels = sorted({row["level"] for row in results["methods"] if row["level"] is not None})
    cuts: list[int | None] = [None, *levels] if len(levels) > 1 else [None]
    charts = tag("div", *(_chart(run, made, results, baselines, level) for level in cuts), class_="charts")
    return tag("div", tag("h3", _title(run, made)), charts, _table(results), class_="block")


def _title(run: Run, made: Made) -> Html:
    """`search`: small, 0.17 M parameters, checked by prm, 0.98 M."""
    roles = [_sized(run, made.step.inputs[role]) for role in ("model", "prm") if role in made.step.inputs]
    return join([made.name, tag("small", ", checked by ".join(roles))])


def _sized(run: Run, step: str) -> str:
    source = run.made.get(step)
    total = parameters(source) if source else None
    return f"{step} ({count(total)} parameters)" if total else step


def _chart(
    run: Run, made: Made, results: dict[str, Any], baselines: Sequence[tuple[Made, Any]], level: int | None
) -> Html:
    rows = _cut(results["methods"], level)
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != GREEDY]
    lines = [
        _line(name, index, [row for row in rows if row["method"] == name])
        for index, name in enumerate(methods, start=1)
    ]
    lines += _ceiling(results, rows, level)
    lines += [_alone(made.step.inputs["model"], row, lines, 0) for row in rows if row["method"] == GREEDY]
    for other, found in baselines:
        for row in _cut(found["methods"], level):
            lines.append(_alone(other.step.inputs["model"], row, lines, BASELINE_COLOUR))
    problems = max(row["problems"] for row in rows)
    caption = (
        f"{problems:,} problems; whiskers are 95 % intervals over problems. Dashed: one greedy answer "
        "of the model named, and pass@n, the share of problems that any of n samples solves."
    )
    drawn = line_chart(lines, "tokens per problem", show=_share, log_x=True, within=(0.0, 1.0))
    title = "All levels" if level is None else f"Level {level}"
    return tag("figure", tag("figcaption", tag("b", title), tag("span", caption if level is None else "")), drawn)


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


def _cut(rows: Iterable[dict[str, Any]], level: int | None) -> list[dict[str, Any]]:
    return [row for row in rows if row["level"] == level and row["seed"] is None]


def _line(name: str, colour: int, rows: Figures) -> Series:
    ordered = sorted(rows, key=lambda row: row["tokens"])
    points = [(row["tokens"], row["mean"]) for row in ordered]
    return Series(name, points, colour, intervals=[(row["tokens"], row["low"], row["high"]) for row in ordered])


def _ceiling(results: dict[str, Any], rows: Figures, level: int | None) -> list[Series]:
    """pass@n at what n samples cost unscored: what a perfect verifier would reach."""
    costs = {row["n"]: row["generated"] for row in rows if row["method"] in ("majority", "weighted", "best_of_n")}
    points = [(costs[row["k"]], row["mean"]) for row in _cut(results["pass"], level) if row["k"] in costs]
    return [Series("pass@n", points, 8, dashed=True)] if points else []


def _alone(name: str, row: dict[str, Any], lines: Sequence[Series], colour: int) -> Series:
    """A greedy answer as a level line over the whole width."""
    xs = [x for line in lines for x, _ in line.points] + [row["tokens"]]
    return Series(name, [(min(xs), row["mean"]), (max(xs), row["mean"])], colour, dashed=True)


def _table(results: dict[str, Any]) -> Html:
    rows = _cut(results["methods"], None)
    head = ["method", *map(head_number, ("n", "tokens / problem", "generated", "scored", "accuracy", "95 % interval"))]
    return table(
        head,
        (
            [
                tag("td", row["method"], class_="strong"),
                number(row["n"]),
                number(f"{row['tokens']:,.0f}"),
                number(f"{row['generated']:,.0f}"),
                number(f"{row['scored']:,.0f}" if row["scored"] else NONE),
                number(percent(row["mean"])),
                number(_span(row, 1)),
            ]
            for row in rows
        ),
    )


def _differences(results: dict[str, Any]) -> Html:
    """Each method minus the baseline on the same problems, paired."""
    rows, base = results["differences"], results["baseline"]
    levels = sorted({row["level"] for row in rows if row["level"] is not None})
    head = ["search", "method", *map(head_number, ("n", "all levels", *(f"level {level}" for level in levels)))]
    groups: dict[tuple[str, str, int], dict[int | None, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["search"], row["method"], row["n"]), {})[row["level"]] = row
    lines = (
        [role, tag("td", method, class_="strong"), number(n), *(_difference(cuts.get(cut)) for cut in (None, *levels))]
        for (role, method, n), cuts in groups.items()
    )
    same = "the same n" if base["n"] is None else f"n = {base['n']}"
    caption = (
        f"Percentage points of accuracy above {base['method']} of {base['search']} ({same}) on the same problems, with "
        "95 % intervals (bootstrap over problems). Bold where the interval does not hold zero."
    )
    title = tag("h3", f"Against {base['search']}, {base['method']}")
    return tag("div", title, tag("p", caption, class_="caption"), table(head, lines), class_="block")


def _difference(row: dict[str, Any] | None) -> Html:
    if row is None:
        return number(NONE)
    value = f"{100 * row['mean']:+.1f}"
    sure = row["low"] > 0 or row["high"] < 0
    return number(join([tag("b", value) if sure else value, tag("small", f" {_span(row, 1)}")]))


def _span(row: dict[str, Any], digits: int) -> str:
    return f"[{100 * row['low']:.{digits}f}, {100 * row['high']:.{digits}f}]"


def _policies(run: Run) -> list[Html]:
    """Compute-optimal: the fitted policy on held-out problems, beside the best single method at the same budget."""
    return [
        _policy(made, curve["curve"], made.json("policy.json"))
        for made in run.of_kind("search_policy")
        if (curve := made.json("curve.json"))
    ]


def _policy(made: Made, curve: Figures, policy: dict[str, Any]) -> Html:
    lines = [
        _line(name, colour, [row[name] for row in curve])
        for colour, name in enumerate(("policy", "single", "hindsight"), start=1)
    ]
    caption = (
        "Method and n chosen by how hard a problem looks to a short probe, whose tokens count; one for all, without a "
        "probe, where that pays more. Single: the method that "
        "was best on the problems it was fitted on; hindsight: the one that turned out best on these."
    )
    drawn = line_chart(lines, "tokens per problem", show=_share, log_x=True)
    figure = tag("figure", tag("figcaption", tag("b", "Compute-optimal"), tag("span", caption)), drawn)
    return tag("div", tag("h3", made.name), tag("div", figure, _choices(policy), class_="beside"), class_="block")


def _by_bin(row: dict[str, Any]) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = row["bins"]
    return chosen if row["probe"] else [row["single"]] * len(chosen)


def _choices(policy: dict[str, Any]) -> Html:
    """What the policy does at each budget, from the hardest bin to the easiest; the same for all without a probe."""
    edges = [0.0, *policy["borders"], 1.0]
    head = [head_number("budget"), *(f"{100 * low:.0f}-{100 * high:.0f}% likely" for low, high in pairwise(edges))]
    return table(
        head,
        (
            [number(f"{row['budget']:,}"), *(f"{one['method']} {one['n']}" for one in _by_bin(row))]
            for row in policy["budgets"]
        ),
    )
