"""How good the models are: scores with their errors, by level with intervals, and what each model wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from acorn.report.charts import Estimate, interval_chart, legend
from acorn.report.markup import NONE, Html, figure, join, number, percent, table, tag
from acorn.report.read import Made, Run
from acorn.report.scales import wilson

_LEVEL = re.compile(r"(.+)_level_(\w+)")
PROBLEMS, SOLVED = "acorn:problems", "exact_match"
_SHARES = (
    "exact_match",
    "acc",
    "em",
    "pass@",
    "maj@",
    "weighted@",
    "f1",
    "prefix_",
    "quasi_",
    "inst_level",
    "prompt_level",
    "mcq",
    "mc1",
    "mc2",
)
"""Metrics that are shares of 1, by how lighteval's names begin; others are shown as they are."""


@dataclass(frozen=True)
class Results:
    """`results.json` of an evaluation, its models in the recipe's order."""

    made: Made
    models: dict[str, dict[str, dict[str, dict[str, Any]]]]
    """role -> task -> metric -> {"value", "stderr", "n"}"""
    colours: dict[str, int]

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for tasks in self.models.values() for task in tasks))

    def metrics(self, task: str) -> list[str]:
        return list(dict.fromkeys(name for tasks in self.models.values() for name in tasks.get(task, {})))

    def entry(self, role: str, task: str, metric: str) -> dict[str, Any] | None:
        return self.models[role].get(task, {}).get(metric)


@dataclass(frozen=True)
class Score:
    """The score a headline tells: `(role, value, colour)` for each model."""

    task: str
    metric: str
    label: str
    values: list[tuple[str, float, int]]
    n: int


def read_results(run: Run) -> list[Results]:
    """Results of every evaluation that is built."""
    found = []
    for made in run.of_kind("evaluation"):
        if data := made.json("results.json"):
            roles = [role for role in made.step.inputs if role in data["models"]]
            roles += [role for role in data["models"] if role not in roles]
            models = {role: data["models"][role] for role in roles}
            found.append(Results(made, models, {role: colour_of(run, made, role) for role in roles}))
    return found


def colour_of(run: Run, made: Made, role: str) -> int:
    """A model has one colour on the whole page: that of its step."""
    source = made.step.inputs.get(role, "")
    if source in run.made:
        return model_colour(run, source)
    return (3 + list(made.step.inputs).index(role)) % 8 if role in made.step.inputs else 7


def model_colour(run: Run, step: str) -> int:
    models = [made.name for made in run.of_kind("model")]
    return models.index(step) % 8 if step in models else 0


def main_score(results: Results) -> Score | None:
    """The first share that every model has; `acorn:problems` before others."""
    tasks = sorted(results.tasks(), key=lambda name: name != PROBLEMS)
    for task, metric in ((name, metric) for name in tasks for metric in results.metrics(name)):
        entries = {role: results.entry(role, task, metric) for role in results.models}
        if is_share(metric) and all(entries.values()):
            values = [(role, float(entry["value"]), results.colours[role]) for role, entry in entries.items() if entry]
            label = "held-out problems solved" if (task, metric) == (PROBLEMS, SOLVED) else f"{task} {metric}"
            return Score(task, metric, label, values, int(next(iter(entries.values()))["n"]))  # type: ignore[index]
    return None


def is_share(metric: str) -> bool:
    return metric.startswith(_SHARES)


def scores(run: Run) -> Html | None:
    """The section of evaluation results; None where no evaluation belongs to the recipe."""
    if not run.of_kind("evaluation"):
        return None
    found = read_results(run)
    if not found:
        return missing(run.of_kind("evaluation"))
    return join(tag("div", _charts(results), _table(results), class_="beside") for results in found)


def missing(made: Iterable[Made]) -> Html:
    """What stands in the place of something that is not built."""
    names = ", ".join(one.name for one in made if one.artifact is None)
    return tag("p", tag("b", "Not built: "), names, class_="absent")


def _table(results: Results) -> Html:
    head = ["", tag("th", "n", class_="num n", scope="col"), *(_role_head(results, role) for role in results.models)]
    rows: list[list[Any]] = []
    for task in results.tasks():
        rows.append([tag("td", task, class_="strong", colspan=2 + len(results.models))])
        for metric in results.metrics(task):
            entries = [results.entry(role, task, metric) for role in results.models]
            n = max((entry["n"] for entry in entries if entry), default=0)
            rows.append(
                [_metric_name(metric), number(f"{n:,}", class_="n"), *(_score(metric, entry) for entry in entries)]
            )
    note = "Value ± standard error; every model answered the same questions. Of bits per byte, less is better."
    return tag("div", table(head, rows, class_="scores"), tag("p", note, class_="caption"), _overlap(results))


def _overlap(results: Results) -> Html | None:
    """What the models may have learned by heart, and what they score without it."""
    told = results.made.json("contamination.json")
    if not told:
        return None
    lines = []
    for role, tasks in told["models"].items():
        for task, one in tasks.items():
            if one["overlapping"]:
                scores = ((name, pair["all"], pair["without"]) for name, pair in one["metrics"].items())
                first = next(((name, a, b) for name, a, b in scores if b is not None), None)
                score = f": {first[0].replace('_', ' ')} {first[1]:.3f}, without them {first[2]:.3f}" if first else ""
                lines.append(
                    f"{role} learned from text that overlaps {one['overlapping']} of {one['items']} of {task}{score}."
                )
    searched = [one for one in told["ancestors"] if one["searched"]]
    head = f"{told['n_grams']}-grams of every item were looked for in {len(searched)} ancestors of the models. "
    return tag("p", head, " ".join(lines) or "None of what they learned from overlaps.", class_="caption")


def _role_head(results: Results, role: str) -> Html:
    return tag("th", tag("i", class_=f"swatch c{results.colours[role]}"), role, class_="num", scope="col")


def _metric_name(metric: str) -> Html:
    match = _LEVEL.fullmatch(metric)
    return tag("td", f"level {match[2]}" if match else metric.replace("_", " "), class_="indent")


def _score(metric: str, entry: dict[str, Any] | None) -> Html:
    if entry is None:
        return number(NONE)
    value, error = float(entry["value"]), entry.get("stderr")
    if not is_share(metric):
        shown = figure(value)
        digits = len(shown.partition(".")[2]) if "e" not in shown else 4
        return number(join([shown, tag("small", f" ± {error:.{digits}f}") if error is not None else None]))
    return number(join([percent(value), tag("small", f" ± {100 * error:.1f}") if error is not None else None]))


def _charts(results: Results) -> Html:
    charts = []
    for task in results.tasks():
        levels = [match for metric in results.metrics(task) if (match := _LEVEL.fullmatch(metric))]
        if len({match[2] for match in levels}) > 1 and is_share(levels[0][0]):
            charts.append(_level_chart(results, task, sorted(levels, key=lambda match: (len(match[2]), match[2]))))
    charts += [_task_chart(results)] if len(_share_tasks(results)) > 1 else []
    return tag("div", *charts, class_="charts")


def _level_chart(results: Results, task: str, levels: list[re.Match[str]]) -> Html:
    overall = levels[0][1]
    metrics = [overall, *(match[0] for match in levels)]
    groups = ["all", *(f"level {match[2]}" for match in levels)]
    series = [
        (role, results.colours[role], [_estimate(results.entry(role, task, metric)) for metric in metrics])
        for role in results.models
    ]
    caption = f"{task}, {overall.replace('_', ' ')} by level. Whiskers are 95 % intervals (Wilson)."
    return tag(
        "figure", tag("figcaption", tag("b", "Accuracy by level"), tag("span", caption)), interval_chart(groups, series)
    )


def _share_tasks(results: Results) -> list[tuple[str, str]]:
    """First share of each task."""
    firsts = ((task, next((m for m in results.metrics(task) if is_share(m)), None)) for task in results.tasks())
    return [(task, metric) for task, metric in firsts if metric]


def _task_chart(results: Results) -> Html:
    pairs = _share_tasks(results)
    series = [
        (role, results.colours[role], [_estimate(results.entry(role, task, metric)) for task, metric in pairs])
        for role in results.models
    ]
    names = [task.split("|")[0].split(":")[-1][:14] for task, _ in pairs]
    caption = "The first metric of each task. Whiskers are 95 % intervals."
    return tag(
        "figure", tag("figcaption", tag("b", "Accuracy by task"), tag("span", caption)), interval_chart(names, series)
    )


def _estimate(entry: dict[str, Any] | None) -> Estimate | None:
    """Wilson's interval where the score is a share of right answers, else 1.96 standard errors."""
    if entry is None or not math.isfinite(float(entry["value"])):
        return None
    value, n, error = float(entry["value"]), int(entry["n"]), entry.get("stderr")
    right = value * n
    if n > 0 and abs(right - round(right)) < 1e-6 * n:
        low, high = wilson(value, n)
    else:
        low, high = value - 1.96 * (error or 0.0), value + 1.96 * (error or 0.0)
    return Estimate(value, max(0.0, low), min(1.0, high), f", n = {n:,}")


def role_legend(results: Results) -> Html:
    return legend([(role, results.colours[role]) for role in results.models])
