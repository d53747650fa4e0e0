"""What the report is drawn from: for each step of a recipe its newest artifact, and the files in it.

Everything here is read as data from outside: a file that is absent is None or empty, so that a partial run still makes
a page; a file that is there and cannot be read raises, naming it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from acorn.plan import PlanRow, plan, ref_name
from acorn.recipe import Recipe, Step
from acorn.resolve import MissingInput
from registry import Artifact, Registry

Row = dict[str, Any]
Curve = list[tuple[float, float]]
"""(step, value), by step."""


@dataclass(frozen=True)
class Made:
    """A step and what it made; `artifact` is None while it is not built."""

    step: Step
    artifact: Artifact | None
    stale: str = ""
    """Why the artifact is not what the recipe stands for now; empty when it is."""

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def kind(self) -> str:
        return self.step.stage.output

    @property
    def ledger(self) -> Mapping[str, Any]:
        return self.artifact.manifest.ledger if self.artifact else {}

    def bytes(self) -> int:
        """Size on disk."""
        return self.artifact.manifest.size if self.artifact else 0

    def figure(self, name: str) -> float | None:
        """A ledger entry as a number."""
        value = self.ledger.get(name)
        return None if value is None else float(value)

    def json(self, name: str) -> Any:
        """A JSON file of the artifact, None where it has no such file. Raises ValueError naming a malformed file."""
        path = self.path(name)
        return None if path is None else _parse(path.read_text(encoding="utf-8"), str(path))

    def rows(self, name: str, most: int | None = None) -> list[Row]:
        """The first `most` rows of a JSON-lines file; none where it is absent."""
        path = self.path(name)
        return [] if path is None else list(islice(_lines(path), most))

    def path(self, name: str) -> Path | None:
        if self.artifact is None:
            return None
        path = self.artifact.path / name
        return path if path.is_file() else None


@dataclass(frozen=True)
class Run:
    """All steps of a recipe, in its order."""

    recipe: Recipe
    made: dict[str, Made]
    note: str = ""
    """Why it could not be told whether artifacts are what the recipe would build now."""

    def of_kind(self, kind: str) -> list[Made]:
        return [made for made in self.made.values() if made.kind == kind]

    def built(self) -> list[Made]:
        return [made for made in self.made.values() if made.artifact is not None]


def read_run(recipe: Recipe, registry: Registry) -> Run:
    """The artifacts that stand under the recipe's names, with the plan's word on whether they are current."""
    refs = registry.refs()
    stale, note = _stale(recipe, registry, refs)
    made = {}
    for name, step in recipe.steps.items():
        key = refs.get(ref_name(recipe, name))
        made[name] = Made(step, registry.find(key) if key else None, stale.get(name, "") if key else "")
    return Run(recipe, made, note)


def _stale(recipe: Recipe, registry: Registry, refs: Mapping[str, str]) -> tuple[dict[str, str], str]:
    try:
        rows = plan(recipe, registry)
    except MissingInput as error:  # the recipe names data that is not on this machine; what was built can be shown
        return {}, f"Whether the artifacts are current is unknown here: {error}"
    found = {row.step: why for row in rows if (why := _why_stale(row, refs.get(ref_name(recipe, row.step))))}
    return found, ""


def _why_stale(row: PlanRow, shown: str | None) -> str:
    if row.status == "waits":
        return f"{row.why.removeprefix('on ')}, which it needs, is to be built again first"
    if row.status == "hit" and row.key != shown:
        return f"it stands for artifact {row.key}, which is built too; `acorn run` makes that the newest"
    return row.why if row.status == "stale" else ""


@dataclass
class Log:
    """`logs/metrics.jsonl`: curves by metric name, and figures of the whole step (logged without a step)."""

    curves: dict[str, Curve] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def curve(self, name: str) -> Curve:
        return self.curves.get(name, [])


def read_log(made: Made) -> Log:
    log = Log()
    for row in made.rows("logs/metrics.jsonl"):
        for name, value in row.items():
            if name in ("step", "time") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if row.get("step") is None:
                log.figures[name] = float(value)
            else:
                log.curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return log


def parameters(model: Made) -> int | None:
    """Parameters of a model folder, counted from its safetensors headers (tied weights are stored, and count, once)."""
    if model.artifact is None:
        return None
    files = sorted(model.artifact.path.glob("*.safetensors"))
    shapes = [entry["shape"] for path in files for name, entry in _header(path).items() if name != "__metadata__"]
    return sum(_product(shape) for shape in shapes) or None


def _header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file: 8 bytes little-endian length, then JSON (the format's README)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = _parse(file.read(length).decode(), str(path))
    return header


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse(line, f"{path}, line {number}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not JSON ({error}); `acorn artifacts verify` tells whether it is damaged"
        ) from error
