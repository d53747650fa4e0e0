"""What the models of a recipe are measured on, as inputs of every step that must keep it out of its rows.

A step that does (`Identity.keeps_out_tests`) takes, beside the inputs that are written down, each corpus that an
evaluation of the recipe reads, and what else the evaluation asks: a step `<evaluation>-test-sets` writes that down. So
both are built before, are seen in the plan, and enter the key by digest; a recipe whose evaluations read what the step
reads anyway keeps its keys. Left out is only a test set that is itself made from the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acorn.recipe import Step

STAGE = "test_sets"


def steps_to_add(steps: Mapping[str, Step]) -> dict[str, dict[str, Any]]:
    """Steps of stage `test_sets` as a recipe has them, by name: for each evaluation that asks what none before does."""
    if not any(step.identity.keeps_out_tests for step in steps.values()):
        return {}
    added: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        config = step.identity.measures_on
        if config and config not in [one["config"] for one in added.values()]:
            added[f"{name}-test-sets"] = {"stage": STAGE, "config": config}
    return added


def with_test_sets(steps: Mapping[str, Step]) -> dict[str, Step]:
    """The steps, those that keep tests out with the recipe's test sets as further inputs."""
    sources = list(dict.fromkeys(_sources(steps)))
    found = dict(steps)
    for name, step in steps.items():
        if step.identity.keeps_out_tests:
            found[name] = _with(step, sources, found)  # with what was added before: no two steps wait for each other
    return found


def _sources(steps: Mapping[str, Step]) -> Iterator[str]:
    for name, step in steps.items():
        if step.identity.measures_on is not None:
            yield from (source for role, source in step.inputs.items() if step.stage.kinds_of(role) == ("corpus",))
        elif step.stage.name == STAGE:
            yield name


def _with(step: Step, sources: list[str], steps: Mapping[str, Step]) -> Step:
    inputs = dict(step.inputs)
    for source in sources:
        if source not in inputs.values() and step.name not in _behind(source, steps):
            inputs[_role(source, step)] = source
    return dataclasses.replace(step, inputs=inputs)


def _role(source: str, step: Step) -> str:
    """The source's name, where the stage has no input of that name."""
    name = source.removeprefix("@").removesuffix("?")
    taken = {role.rstrip("?") for role in step.stage.inputs} | set(step.inputs)
    return f"tests-{name}" if name in taken else name


def _behind(source: str, steps: Mapping[str, Step]) -> set[str]:
    """The step `source` and all that it is made from."""
    found: set[str] = set()
    waiting = [source]
    while waiting:
        name = waiting.pop()
        if name in steps and name not in found:
            found.add(name)
            waiting += steps[name].inputs.values()
    return found
