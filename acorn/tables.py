"""Rich tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from acorn.costs import Cost
    from acorn.plan import PlanRow
    from acorn.recipe import Fault, Recipe
    from acorn.run import StepEvent
    from acorn.stage import Derived

STATUS_STYLE = {"hit": "green", "stale": "yellow", "missing": "cyan", "waits": "dim"}


def plan(recipe: Recipe, rows: Sequence[PlanRow]) -> RenderableType:
    table = Table(title=f"{recipe.name} ({recipe.path})", title_justify="left")
    for column in ("step", "stage", "status", "why", "key"):
        table.add_column(column, overflow="fold")
    for row in rows:
        status = Text(row.status, style=STATUS_STYLE[row.status])
        table.add_row(row.step, row.stage, status, row.why, (row.key or "")[:12])
    counts = ", ".join(
        f"{sum(r.status == s for r in rows)} {s}" for s in STATUS_STYLE if any(r.status == s for r in rows)
    )
    return Group(table, Text(counts))


def derived(step: str, fields: Sequence[Derived]) -> RenderableType:
    """What a step's dial filled in, and by which rule."""
    table = Table(title=f"{step}: derived by its dial", title_justify="left")
    for column in ("field", "value", "why"):
        table.add_column(column, overflow="fold")
    before = ""
    for one in fields:
        why = "as above" if one.why == before else one.why
        table.add_row(one.field, f"{one.value:,}" if isinstance(one.value, int) else str(one.value), why)
        before = one.why
    return table


def costs(found: Sequence[Cost], device: str | None, mfu: float) -> RenderableType:
    where = f" on {device}, at {mfu:.0%} of its best speed" if device else ""
    table = Table(title=f"estimated cost{where}", title_justify="left")
    for column in (
        "step",
        "processes",
        "parameters",
        "tokens",
        "FLOPs",
        "GB a process",
        *(["hours"] if device else []),
    ):
        table.add_column(column, justify="left" if column == "step" else "right")
    lines = []
    for cost in found:
        lines += [Text(f"{cost.step}: {note}", style="yellow") for note in cost.notes]
        if not cost.tokens:
            continue
        hours = [] if device is None else ["" if cost.hours is None else f"{cost.hours:,.2f}"]
        figures = (f"{cost.parameters:,}", f"{cost.tokens:,}", f"{cost.flops:.3g}", f"{cost.memory_bytes / 1e9:,.2f}")
        table.add_row(cost.step, str(cost.processes), *figures, *hours)
    return Group(table, *lines) if table.row_count else Group(*lines)


def faults(found: Sequence[Fault]) -> RenderableType:
    lines = [Text(f"The recipe has {len(found)} fault{'s' if len(found) > 1 else ''}; nothing has run.", style="red")]
    for fault in found:
        lines.append(Text.assemble((fault.where, "cyan"), "  ", (fault.field, "bold"), f"  {fault.message}"))
    return Group(*lines)


def event(happened: StepEvent) -> RenderableType:
    key = happened.artifact.key[:12] if happened.artifact else ""
    match happened.kind:
        case "start":
            return Text(f"▶ {happened.step}", style="bold")
        case "built":
            figures = _figures(happened.artifact.manifest.metrics) if happened.artifact else ""
            return Text.assemble(
                ("✓ ", "green"), f"{happened.step}  ", (f"{key}  {happened.seconds:.1f} s  ", "dim"), figures
            )
        case "hit":
            return Text.assemble(("= ", "green"), f"{happened.step}  ", (f"{key}  already built", "dim"))
        case "waiting":
            return Text(f"… {happened.step}: another process is at work on it: waiting", style="dim")
    return Text(f"· {happened.step}: {happened.kind}", style="dim")


def _figures(metrics: Mapping[str, Any], most: int = 4) -> str:
    shown = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)][:most]
    return "  ".join(f"{name} {value:,.4g}" for name, value in shown)


def artifacts(manifests: Sequence[Any], refs: Mapping[str, str]) -> RenderableType:
    names: dict[str, list[str]] = {}
    for name, key in refs.items():
        names.setdefault(key, []).append(name)
    table = Table(box=None)
    for column in ("key", "kind", "stage", "created", "size", "names"):
        table.add_column(column, no_wrap=column != "names", justify="right" if column == "size" else "left")
    for manifest in manifests:
        created = str(manifest.created)[:16].replace("T", " ")
        table.add_row(
            *(manifest.key[:12], manifest.kind, manifest.stage, created, f"{manifest.size / 1e6:,.2f} MB"),
            "\n".join(names.get(manifest.key, [])),
        )
    return table


def scaling(figures: Mapping[str, Any]) -> RenderableType:
    """The fitted sizes, the prediction, and the measured point once there is one."""
    law, following, measured = figures["law"], figures["next"], figures["measured"]
    title = f"loss = {law['floor']:.4g} + {law['scale']:.4g} (C / {law['unit']:.3g})^-{law['exponent']:.3g}"
    table = Table(title=title, title_justify="left")
    for column in ("size", "width", "parameters", "tokens", "FLOPs", "loss", "law", "error"):
        table.add_column(column, justify="left" if column == "size" else "right")
    for one in figures["sizes"]:
        table.add_row(*_sized(one), f"{one['loss'] * (1 + one['residual']):.4f}", f"{100 * one['residual']:+.2f} %")
    if measured:
        table.add_row(*_sized(measured), f"{following['loss']:.4f}", f"{100 * measured['error']:+.2f} %", style="bold")
    else:
        blank = ("", "", f"{following['compute']:.3g}", "")
        table.add_row(f"d{following['depth']}", f"{following['width']:,}", *blank, f"{following['loss']:.4f}", "")
    span = f"{following['low']:.4f} to {following['high']:.4f}"
    return Group(
        table, Text(f"d{following['depth']} predicted: {following['loss']:.4f} ({span} with one size left out)")
    )


def _sized(one: Mapping[str, Any]) -> tuple[str, ...]:
    whole = (f"{one[name]:,}" for name in ("width", "parameters", "tokens"))
    return (f"d{one['depth']}", *whole, f"{one['flops']:.3g}", f"{one['loss']:.4f}")


def pairs(title: str, rows: Mapping[str, str]) -> RenderableType:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
