"""What an evaluation leaves: results.json, samples, protocol.json, and the table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.statistics import Spread

Sample = dict[str, Any]
"""One line of samples/<role>.jsonl, without its task."""


@dataclass(frozen=True)
class Metric:
    """A score: its value, the standard error (None where none can be given) and the samples it is of."""

    value: float
    stderr: float | None
    n: int
    low: float | None = None
    """Lower end of the 95 % interval, by bootstrap over the samples."""
    high: float | None = None
    higher_is_better: bool = True

    @classmethod
    def of(cls, value: float, spread: Spread | None, n: int, higher_is_better: bool = True) -> Metric:
        if spread is None:
            return cls(value, None, n, higher_is_better=higher_is_better)
        return cls(value, spread.stderr, n, spread.low, spread.high, higher_is_better)


@dataclass(frozen=True)
class Outcome:
    """What one model did on one task."""

    metrics: dict[str, Metric]
    samples: list[Sample]

    def as_json(self) -> dict[str, Any]:
        return {"metrics": {name: asdict(metric) for name, metric in self.metrics.items()}, "samples": self.samples}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return cls({name: Metric(**metric) for name, metric in data["metrics"].items()}, data["samples"])


Results = dict[str, dict[str, Outcome]]
"""role -> task -> outcome, in the recipe's order."""


def write(out: Path, results: Results, tasks: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
    """Write the artifact's files into `out`: the same bytes for the same results."""
    models = {
        role: {task: outcome.as_json()["metrics"] for task, outcome in outcomes.items()}
        for role, outcomes in results.items()
    }
    write_json(out / "results.json", {"tasks": tasks, "models": models})
    write_json(out / "protocol.json", protocol)
    for role, outcomes in results.items():
        lines = [
            json.dumps({"task": task, **sample}, ensure_ascii=False) + "\n"
            for task, outcome in outcomes.items()
            for sample in outcome.samples
        ]
        file = out / "samples" / f"{role}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")


def final_metrics(results: Results) -> dict[str, float]:
    """`eval/<role>/<task>/<metric>` -> value."""
    return {
        f"eval/{role}/{task}/{name}": metric.value
        for role, outcomes in results.items()
        for task, outcome in outcomes.items()
        for name, metric in outcome.metrics.items()
    }


def show(results: Results) -> None:
    """Print tasks by models, each score with its standard error."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for heading in ("", "n", *results):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for task in dict.fromkeys(task for outcomes in results.values() for task in outcomes):
        table.add_row(task, style="bold")
        done = [outcomes[task].metrics if task in outcomes else {} for outcomes in results.values()]
        for name in dict.fromkeys(name for metrics in done for name in metrics):
            count = next(metrics[name].n for metrics in done if name in metrics)
            table.add_row(f"  {name}", str(count), *(_cell(metrics.get(name)) for metrics in done))
    console = Console()
    console.print(table, width=None if console.is_terminal else 40 + 18 * len(results))


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.3f}" + (f" ± {metric.stderr:.3f}" if metric.stderr is not None else "")


def write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
