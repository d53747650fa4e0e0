"""Brings a recipe's steps about, in order: look up, else build under the registry's lock and publish.

Whatever is finished is in the registry; whatever is not goes on from its staging folder. So a run that was killed is
continued by the same command.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acorn.launch import StepFailed, launch, now, process_count, write_job
from acorn.plan import ref_name
from acorn.provenance import git_state, library_versions
from acorn.recipe import Recipe, Step
from acorn.resolve import MissingInput, Resolved, find_inputs, resolve
from acorn.worker import RESULT_FILE, WORKERS_LOCK, load_job, perform
from registry import Artifact, Build, Registry


@dataclass(frozen=True)
class StepEvent:
    """What happened to a step: `hit`, `start`, `waiting` (another process builds it), `built` or `joined`."""

    step: str
    kind: str
    artifact: Artifact | None = None
    seconds: float = 0.0


Listener = Callable[[StepEvent], None]


def run_recipe(
    recipe: Recipe, registry: Registry, listener: Listener, selected: Iterable[str] | None = None
) -> dict[str, Artifact]:
    """Bring about the selected steps (default: all) and return every artifact by step.

    Inputs of selected steps that are not selected themselves must be in the registry already.
    Raises MissingInput, StepFailed, or RegistryError.
    """
    chosen = set(recipe.steps if selected is None else selected)
    if "RANK" in os.environ and len(chosen) > 1:
        raise StepFailed("under `accelerate launch` or `torchrun`, name one step with --step: each needs its own ranks")
    group = os.environ.get("ACORN_RUN_ID") or f"{recipe.name}-{now()}"
    made: dict[str, Artifact | None] = {}
    for name, step in recipe.steps.items():
        if name not in chosen and not _needed_by(recipe, name, chosen):
            continue
        inputs = find_inputs(recipe, step, made, registry)
        if isinstance(inputs, str):
            made[name] = None
            if name in chosen:
                raise MissingInput(
                    f"step '{name}' needs '{inputs}', which is not built yet. Run `acorn run {recipe.path}` for the "
                    f"whole chain, or `acorn run {recipe.path} --only {inputs}` first."
                )
            continue
        resolved = resolve(step, inputs, registry)
        made[name] = bring_about(recipe, resolved, registry, group, listener, build=name in chosen)
    return {name: artifact for name, artifact in made.items() if artifact is not None}


def _needed_by(recipe: Recipe, name: str, chosen: set[str]) -> bool:
    return bool(chosen.intersection(recipe.downstream(name)))


def bring_about(
    recipe: Recipe, resolved: Resolved, registry: Registry, group: str, listener: Listener, build: bool = True
) -> Artifact | None:
    """The artifact of one step: found, or built and published. None if it is absent and `build` is false."""
    name = resolved.step.name
    artifact = registry.find(resolved.key)
    if artifact is None and not build:
        return None
    if artifact is not None:
        listener(StepEvent(name, "hit", artifact))
    elif _joins_another_node(resolved.step):
        artifact = _join(recipe, resolved, registry, group, listener)
    else:
        artifact = _build(recipe, resolved, registry, group, listener)
    if artifact is not None:
        registry.tag(ref_name(recipe, name), artifact.key)
    return artifact


def _build(recipe: Recipe, resolved: Resolved, registry: Registry, group: str, listener: Listener) -> Artifact:
    name = resolved.step.name
    with registry.build(resolved.spec, on_wait=lambda: listener(StepEvent(name, "waiting"))) as build:
        if build.artifact is not None:
            listener(StepEvent(name, "hit", build.artifact))
            return build.artifact
        listener(StepEvent(name, "start"))
        started = time.monotonic()
        _wait_for_orphans(build.scratch)
        (build.scratch / RESULT_FILE).unlink(missing_ok=True)
        description = describe_job(recipe, resolved, build.out, build.scratch, group)
        if "RANK" in os.environ:  # accelerate launch / torchrun started us: we are one of the step's processes
            perform(load_job(description))
        else:
            job_file = write_job(build.scratch / "job.json", description)
            launch(resolved.step.stage, job_file, resolved.step.execution, build.lock_fd)
        artifact = _publish(build, resolved)
        listener(StepEvent(name, "built", artifact, time.monotonic() - started))
        return artifact


def _publish(build: Build, resolved: Resolved) -> Artifact:
    result_file = build.scratch / RESULT_FILE
    if not result_file.exists():
        raise StepFailed(f"step '{resolved.step.name}' ended without a result: no process was rank 0")
    result = json.loads(result_file.read_text())
    own = getattr(resolved.step.identity, "license", None)
    return build.publish(
        metrics=result["metrics"],
        ledger=result["ledger"],
        licenses=[own] if own else [],
        libraries=library_versions(),
        git=git_state(),
    )


def _joins_another_node(step: Step) -> bool:
    """Whether this process only contributes ranks to a step that another process builds and publishes."""
    return getattr(step.execution, "node_rank", 0) > 0 or int(os.environ.get("RANK", "0")) > 0


def _join(recipe: Recipe, resolved: Resolved, registry: Registry, group: str, listener: Listener) -> Artifact | None:
    """Run this node's (or this rank's) share of a step; the builder on node 0 publishes it."""
    listener(StepEvent(resolved.step.name, "joined"))
    staging = registry.home / "staging" / resolved.key
    description = describe_job(recipe, resolved, staging / "out", staging / "scratch", group)
    if "RANK" in os.environ:
        perform(load_job(description))
    else:
        (staging / "scratch").mkdir(parents=True, exist_ok=True)
        job_file = write_job(staging / "scratch" / f"job-node{description['execution']['node_rank']}.json", description)
        launch(resolved.step.stage, job_file, resolved.step.execution)
    return _await_publication(resolved, registry)


def _await_publication(resolved: Resolved, registry: Registry, seconds: float = 600.0) -> Artifact:
    """The artifact, once the builder on node 0 has published it. Raises StepFailed if it does not come."""
    deadline = time.monotonic() + seconds
    while (artifact := registry.find(resolved.key)) is None:
        if time.monotonic() > deadline:
            raise StepFailed(f"step '{resolved.step.name}': node 0 published nothing within {seconds:.0f} s")
        time.sleep(0.2)
    return artifact


def describe_job(recipe: Recipe, resolved: Resolved, out: Path, scratch: Path, group: str) -> dict[str, Any]:
    """Plain description of a job, for the worker processes."""
    step = resolved.step
    execution = step.execution.model_dump(mode="json")
    if "processes" in execution:
        execution["processes"] = process_count(step.execution)
    return {
        "recipe": recipe.name,
        "step": step.name,
        "stage": step.stage.name,
        "config": step.identity.model_dump(mode="json"),
        "execution": execution,
        "inputs": {role: str(artifact.path.resolve()) for role, artifact in resolved.spec.inputs.items()},
        "digests": {role: artifact.digest for role, artifact in resolved.spec.inputs.items()},
        "out": str(out.resolve()),
        "scratch": str(scratch.resolve()),
        "group": group,
    }


def _wait_for_orphans(scratch: Path) -> None:
    """Wait until no worker of a killed attempt is left: they hold a shared lock while they live."""
    with (scratch / WORKERS_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
