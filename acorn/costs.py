"""What the steps of a recipe that train would cost: FLOPs, memory, and hours on devices of a kind. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acorn.devices import Device
from acorn.launch import process_count
from acorn.plan import PlanRow
from acorn.recipe import Recipe, Step
from registry import Artifact, Registry

ASSUMED_MFU = 0.4
"""Of the devices' best, for the hours; what `train/mfu` of a run of your own says is the better figure."""


@dataclass(frozen=True)
class Cost:
    """Of one step. `hours` needs a device; `notes` say what the figures leave out or why there are none."""

    step: str
    processes: int
    parameters: int = 0
    tokens: int = 0
    flops: int = 0
    memory_bytes: int = 0
    """Of the fullest process."""
    hours: float | None = None
    notes: tuple[str, ...] = ()


def costs(
    recipe: Recipe,
    registry: Registry,
    rows: Sequence[PlanRow],
    devices: tuple[Device, int] | None = None,
    mfu: float = ASSUMED_MFU,
) -> list[Cost]:
    """One for each step whose stage can estimate it. `devices`: a kind and how many, one process on each; without it
    as many processes as the step would start here."""
    made = {row.step: row.artifact for row in rows}
    return [
        _cost(recipe, registry, step, made, devices, mfu)
        for step in recipe.steps.values()
        if step.stage.cost is not None
    ]


def figures_of(
    recipe: Recipe, registry: Registry, step: Step, made: Mapping[str, Artifact | None], processes: int | None = None
) -> dict[str, Any]:
    """What the stage of `step`, which must have a `cost`, says of it. `made`: artifacts by step, of those there are;
    `processes`: default as many as the step would start here.

    Raises ValueError for processes that do not fit, UnknownArtifact for an `@name` that the registry has not.
    """
    assert step.stage.cost is not None
    inputs, made_by = {}, {}
    for role, source in step.inputs.items():
        if source.startswith("@"):
            inputs[role] = registry.get(source[1:]).path
            continue
        made_by[role] = recipe.steps[source].identity
        if (artifact := made.get(source)) is not None:
            inputs[role] = artifact.path
    count = _processes(step) if processes is None else processes
    figures: dict[str, Any] = step.stage.load(step.stage.cost)(step.identity, step.execution, count, inputs, made_by)
    return figures


def _processes(step: Step) -> int:
    return process_count(step.execution) * int(getattr(step.execution, "nodes", 1))


def _cost(
    recipe: Recipe,
    registry: Registry,
    step: Step,
    made: Mapping[str, Artifact | None],
    devices: tuple[Device, int] | None,
    mfu: float,
) -> Cost:
    processes = devices[1] if devices else _processes(step)
    try:
        figures = figures_of(recipe, registry, step, made, processes)
    except ValueError as error:
        return Cost(step.name, processes, notes=(str(error),))
    return _on(devices, mfu, step.name, processes, figures)


def _on(devices: tuple[Device, int] | None, mfu: float, step: str, processes: int, figures: dict[str, Any]) -> Cost:
    notes = [figures["note"]] if figures.get("note") else []
    hours = None
    if devices:
        device, count = devices
        if figures["dtype"] == "bfloat16":
            hours = figures["flops"] / (device.bf16_flops * count * mfu) / 3600
        else:
            notes.append(f"no hours: it trains in {figures['dtype']}, and the devices' speed is known for bfloat16")
        if figures["memory_bytes"] > device.memory_bytes:
            notes.append(f"does not fit the {device.memory_bytes / 1e9:.0f} GB of {device.name}")
    counted = {name: figures[name] for name in ("parameters", "tokens", "flops", "memory_bytes")}
    return Cost(step, processes, hours=hours, notes=tuple(notes), **counted)
