"""The table of stages: the one place that knows which packages there are. Importing a stage's declaration is cheap."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from acorn.stage import Stage

PACKAGES = ("corpus", "pretrain", "synth", "posttrain", "eval", "search", "export")


@cache
def stages() -> dict[str, Stage]:
    """Every stage by name. Raises ValueError if two packages declare one name."""
    table: dict[str, Stage] = {}
    for package in PACKAGES:
        for stage in import_module(f"{package}.stage").STAGES:
            if stage.name in table:
                raise ValueError(f"stage '{stage.name}' is declared by {table[stage.name].package} and {package}")
            table[stage.name] = stage
    return table
