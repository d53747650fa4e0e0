"""`acorn artifacts diff` of two evaluations: which samples flipped, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.samples import Part, by_metric, read_samples, roles
from eval.statistics import mcnemar, paired

SHOWN = 5


def diff(left: Path, right: Path) -> tuple[dict[str, Any], Any]:
    """`{role: {task: {metric: ...}}}` and a table, for every role of both; of two models under different names, if
    each evaluation has but one."""
    found = data(left, right)
    return found, table(found)


def data(left: Path, right: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one, other in _pairs(roles(left), roles(right)):
        before, now = read_samples(left, one), read_samples(right, other)
        for task in before:
            if task in now:
                found.setdefault(name, {})[task] = _task(by_metric(before[task]), by_metric(now[task]))
    return found


def _pairs(left: list[str], right: list[str]) -> list[tuple[str, str, str]]:
    if len(left) == len(right) == 1 and left != right:
        return [(f"{left[0]} → {right[0]}", left[0], right[0])]
    return [(role, role, role) for role in left if role in right]


def _task(before: Mapping[str, dict[str, Part]], now: Mapping[str, dict[str, Part]]) -> dict[str, Any]:
    return {
        metric: _metric(before[metric], now[metric])
        for metric in before
        if metric in now and before[metric].keys() & now[metric].keys()
    }


def _metric(before: Mapping[str, Part], now: Mapping[str, Part]) -> dict[str, Any]:
    """The paired difference; where every score is 0 or 1, also what flipped and McNemar's p."""
    shared = [identity for identity in before if identity in now]
    figures = asdict(paired([before[i] for i in shared], [now[i] for i in shared]))
    figures["only_in_one"] = len(before.keys() ^ now.keys())
    if any(part not in ((0.0, 1.0), (1.0, 1.0)) for table in (before, now) for part in table.values()):
        return figures
    lost = [identity for identity in shared if before[identity] > now[identity]]
    won = [identity for identity in shared if before[identity] < now[identity]]
    return figures | {"lost": lost, "won": won, "mcnemar_p": mcnemar(len(lost), len(won))}


def table(found: Mapping[str, Any]) -> Any:
    """For people: a line for each metric, with the first samples that flipped."""
    from rich.table import Table

    shown = Table(title="second minus first, paired", title_justify="left")
    for heading in (
        "role",
        "task",
        "metric",
        "n",
        "difference",
        "95 % interval",
        "right → wrong",
        "wrong → right",
        "p",
    ):
        shown.add_column(heading, overflow="fold")
    for role, tasks in found.items():
        for task, metrics in tasks.items():
            for metric, one in metrics.items():
                flips = [_some(one["lost"]), _some(one["won"]), f"{one['mcnemar_p']:.3g}"] if "lost" in one else []
                span = f"[{one['low']:+.4g}, {one['high']:+.4g}]"
                shown.add_row(role, task, metric, str(one["n"]), f"{one['difference']:+.4g}", span, *flips)
    return shown


def _some(identities: list[str]) -> str:
    more = ", ..." if len(identities) > SHOWN else ""
    return f"{len(identities)}: {', '.join(identities[:SHOWN])}{more}" if identities else "0"
