"""`acorn data show STEP --labels`: which tokens a training step trains, before it has run or after."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from acorn.launch import StepFailed
from acorn.plan import plan
from acorn.recipe import load_recipe, nearest
from acorn.resolve import find_inputs
from acorn.stage import Stage
from acorn.stages import stages
from registry import Registry

TRAINING = ("sft", "dpo")
ROWS = 3
"""Shown of each data input."""


def labels(options: Namespace) -> int:
    """Print rows with what is trained in colour; exit code 1 if the step would refuse them."""
    registry = Registry(options.home)
    find = _of_recipe if options.recipe else _of_artifact
    stage, config, inputs = find(options, registry)
    show = import_module("posttrain.show").show_labels
    return 0 if show(stage, config, inputs, options.n or ROWS, Console()) else 1


def _of_recipe(options: Namespace, registry: Registry) -> tuple[Stage, Any, dict[str, Path]]:
    """The recipe's step `options.name`, or the first step that trains on its rows."""
    recipe = load_recipe(options.recipe, options.overrides, [])
    if options.name not in recipe.steps:
        raise StepFailed(f"{recipe.path} has no step '{options.name}'{nearest(options.name, recipe.steps)}")
    users = [step for step in recipe.steps.values() if options.name in (step.name, *step.inputs.values())]
    step = next((step for step in users if step.stage.name in TRAINING), None)
    if step is None:
        raise StepFailed(f"step '{options.name}' is no {' or '.join(TRAINING)}, and none trains on its rows")
    made = {row.step: row.artifact for row in plan(recipe, registry)}
    inputs = find_inputs(recipe, step, made, registry)
    if isinstance(inputs, str):
        first = f"acorn run {options.recipe} --only {inputs}"
        raise StepFailed(f"step '{step.name}' needs '{inputs}', which is not built yet: {first}")
    return step.stage, step.identity, {role: artifact.path for role, artifact in inputs.items()}


def _of_artifact(options: Namespace, registry: Registry) -> tuple[Stage, Any, dict[str, Path]]:
    """The finished step `options.name`: a ref such as `smoke/sft`, or a key."""
    manifest = registry.get(options.name).manifest
    if manifest.stage not in TRAINING:
        raise StepFailed(
            f"{options.name} was made by {manifest.stage}: what is trained of it depends on the step that trains on "
            "it; name that step's artifact, or a step of a recipe with --recipe FILE"
        )
    stage = stages()[manifest.stage]
    inputs = {role: registry.get(entry.key).path for role, entry in manifest.inputs.items()}
    return stage, stage.identity.model_validate(manifest.config), inputs
