"""Brings a recipe's steps about, in order: look up, else build under the registry's lock and publish.

Whatever is finished is in the registry; whatever is not goes on from its staging folder. So a run that was killed is
continued by the same command.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from acorn.launch import Processes, StepFailed, environment, forkable, now, process_count
from acorn.plan import ref_name
from acorn.provenance import git_state, library_versions
from acorn.recipe import Recipe, Step
from acorn.resolve import MissingInput, Resolved, find_inputs, resolve
from acorn.stage import GATE
from acorn.worker import RESULT_FILE, WORKERS_LOCK, load_job, perform
from registry import Artifact, Build, Registry


@dataclass(frozen=True)
class StepEvent:
    """What happened to a step: `hit`, `start`, `waiting` (for another process at work on it), `built` or `joined`."""

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
    run = _Run(recipe, registry, listener, chosen)
    try:
        for name in recipe.steps:
            if chosen.intersection(recipe.downstream(name)):
                run.bring_about(name)
    finally:
        run.processes.close()
    return {name: artifact for name, artifact in run.made.items() if artifact is not None}


class _Run:
    """One run of a recipe: what it has made so far, and the processes it starts."""

    def __init__(self, recipe: Recipe, registry: Registry, listener: Listener, chosen: set[str]) -> None:
        self.recipe, self.registry, self.tell, self.chosen = recipe, registry, listener, chosen
        self.group = os.environ.get("ACORN_RUN_ID") or f"{recipe.name}-{now()}"
        self.made: dict[str, Artifact | None] = {}
        steps = [recipe.steps[name] for name in chosen]
        # For one step alone a server would import more than the step does.
        self.processes = Processes(registry.home, forks=sum(forkable(one.stage, one.execution) for one in steps) > 1)

    def bring_about(self, name: str) -> None:
        """Find or build the artifact of one step. One that is absent and not chosen stays absent."""
        step = self.recipe.steps[name]
        inputs = find_inputs(self.recipe, step, self.made, self.registry)
        if isinstance(inputs, str):
            if name in self.chosen:
                raise MissingInput(
                    f"step '{name}' needs '{inputs}', which is not built yet. Run `acorn run {self.recipe.path}` for "
                    f"the whole chain, or `acorn run {self.recipe.path} --only {inputs}` first."
                )
            self.made[name] = None
            return
        resolved = resolve(step, inputs, self.registry)
        artifact = self.registry.find(resolved.key)
        if artifact is not None:
            self.tell(StepEvent(name, "hit", artifact))
        elif name in self.chosen:
            artifact = self.join(resolved) if _joins_another_node(step) else self.build(resolved)
        if artifact is not None:
            self.registry.tag(ref_name(self.recipe, name), artifact.key)
            if step.stage.output == GATE:
                self.move_tags(step, inputs)
        self.made[name] = artifact

    def move_tags(self, step: Step, inputs: dict[str, Artifact]) -> None:
        """After a passed gate: its names stand for what it judged, and nothing but such a gate moves them again."""
        for tag, role in getattr(step.execution, "tags", {}).items():
            self.registry.tag(tag, inputs[role].key, gate=ref_name(self.recipe, step.name))

    def build(self, resolved: Resolved) -> Artifact:
        """Build and publish a step, or wait for the process that is building it."""
        name = resolved.step.name
        with self.registry.build(resolved.spec, on_wait=lambda: self.tell(StepEvent(name, "waiting"))) as build:
            if build.artifact is not None:
                self.tell(StepEvent(name, "hit", build.artifact))
                return build.artifact
            self.tell(StepEvent(name, "start"))
            started = time.monotonic()
            _wait_for_orphans(build, lambda: self.tell(StepEvent(name, "waiting")))
            (build.scratch / RESULT_FILE).unlink(missing_ok=True)
            self.work(resolved, build.out, build.scratch)
            artifact = _publish(build, resolved)
            self.tell(StepEvent(name, "built", artifact, time.monotonic() - started))
            return artifact

    def join(self, resolved: Resolved) -> Artifact:
        """Run this node's (or this rank's) share of a step; the builder on node 0 publishes it."""
        self.tell(StepEvent(resolved.step.name, "joined"))
        staging = self.registry.home / "staging" / resolved.key
        (staging / "scratch").mkdir(parents=True, exist_ok=True)
        self.work(resolved, staging / "out", staging / "scratch")
        return _await_publication(resolved, self.registry)

    def work(self, resolved: Resolved, out: Path, scratch: Path) -> None:
        step = resolved.step
        description = describe_job(self.recipe, resolved, out, scratch, self.group)
        if "RANK" in os.environ:  # accelerate launch / torchrun started us: we are one of the step's processes
            for variable, value in environment(step.execution, self.registry.home).items():
                os.environ.setdefault(variable, value)
            perform(load_job(description))
        else:
            self.processes.run(step.stage, step.name, step.execution, description)


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
    inputs = {role: artifact for role, artifact in resolved.spec.inputs.items() if role in step.inputs and role != GATE}
    execution = step.execution.model_dump(mode="json")
    if "processes" in execution and "RANK" not in os.environ:  # else the user's own launcher has decided
        execution["processes"] = process_count(step.execution)
    return {
        "recipe": recipe.name,
        "step": step.name,
        "stage": step.stage.name,
        "config": step.identity.model_dump(mode="json"),
        "execution": execution,
        "inputs": {role: str(artifact.path.resolve()) for role, artifact in inputs.items()},
        "digests": {role: artifact.digest for role, artifact in inputs.items()},
        "ancestors": [asdict(one) | {"path": one.path and str(one.path.resolve())} for one in resolved.ancestors],
        "out": str(out.resolve()),
        "scratch": str(scratch.resolve()),
        "group": group,
    }


def _wait_for_orphans(build: Build, tell: Callable[[], None]) -> None:
    """Wait until no worker of a killed attempt is left: they hold a shared lock while they live."""
    with (build.scratch / WORKERS_LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell()
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(build.out)  # it may have left something after `out` was emptied for us
            build.out.mkdir()
