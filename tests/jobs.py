"""Jobs for stage tests: run one stage on real folders, without a registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acorn.stage import Job, Stage


def make_job(
    stage: Stage,
    folder: Path,
    config: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> Job:
    """A job of `stage` that writes to `folder/out` and `folder/scratch`, both made here."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    return Job(
        recipe="test",
        step=stage.name,
        stage=stage.name,
        config=stage.identity.model_validate(dict(config or {})),
        execution=stage.execution.model_validate(dict(execution or {})),
        inputs=dict(inputs or {}),
        digests={role: f"digest-of-{role}" for role in inputs or {}},
        out=out,
        scratch=scratch,
        group="test",
    )


def run_here(stage: Stage, job: Job) -> dict[str, float]:
    """Run `job` in this process."""
    metrics: dict[str, float] = stage.load(stage.run)(job)
    return metrics
