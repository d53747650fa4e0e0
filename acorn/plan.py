"""What would run: every step of a recipe as hit, stale, missing or waiting, with the field that changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from acorn.recipe import Recipe
from acorn.resolve import find_inputs, resolve
from registry import Artifact, Registry, UnknownArtifact


@dataclass
class PlanRow:
    """`status`: `hit` (in the registry), `stale` (built before, from other config or inputs), `missing` (never built
    under this recipe), `waits` (an input is not built yet; equal bytes upstream would still make it a hit)."""

    step: str
    stage: str
    status: str
    why: str = ""
    key: str | None = None
    artifact: Artifact | None = field(default=None, repr=False)


def ref_name(recipe: Recipe, step: str) -> str:
    """Name under which the registry remembers the newest artifact of a step."""
    return f"{recipe.name}/{step}"


def plan(recipe: Recipe, registry: Registry) -> list[PlanRow]:
    """One row per step, in the order they run. Raises MissingInput for outside data that is absent."""
    made: dict[str, Artifact | None] = {}
    rows = []
    for name, step in recipe.steps.items():
        inputs = find_inputs(recipe, step, made, registry)
        if isinstance(inputs, str):
            row = PlanRow(name, step.stage.name, "waits", f"on {inputs}")
        else:
            resolved = resolve(step, inputs, registry)
            artifact = registry.find(resolved.key)
            row = PlanRow(name, step.stage.name, "hit", "", resolved.key, artifact)
            if artifact is None:
                row.status, row.why = _why_not(recipe, name, resolved.spec, registry)
        made[name] = row.artifact
        rows.append(row)
    return rows


def _why_not(recipe: Recipe, name: str, spec: Any, registry: Registry) -> tuple[str, str]:
    """Status and reason of a step that is no hit, against the artifact last built under its name."""
    try:
        previous = registry.get(ref_name(recipe, name)).manifest
    except UnknownArtifact:
        return "missing", "never built"
    changed = changed_fields(previous.config, spec.config)
    if previous.stage_version != spec.version:
        changed.append(f"stage version {previous.stage_version} → {spec.version}")
    before = {role: entry.digest for role, entry in previous.inputs.items()}
    now = {role: artifact.digest for role, artifact in spec.inputs.items()}
    changed += [f"input {role}" for role in sorted(before.keys() | now.keys()) if before.get(role) != now.get(role)]
    return "stale", ", ".join(changed) or f"artifact {previous.key[:12]} is gone"


def changed_fields(before: Any, now: Any, at: str = "") -> list[str]:
    """`field old → new` for every leaf that differs between two plain configs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in changed_fields(before.get(key), now.get(key), f"{at}.{key}" if at else str(key))
        ]
    return [] if before == now else [f"{at} {_short(before)} → {_short(now)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
