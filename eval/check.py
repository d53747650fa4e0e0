"""Asks lighteval about what a recipe passes through to it: task names and generation parameters."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from acorn.stage import Problem
from eval.config import ACORN_TASKS, EvaluateConfig, EvaluateExecution

INSTEAD = {
    "max_new_tokens": "set config.max_new_tokens: lighteval cuts the prompt to this one",
    "seed": "set config.seed: lighteval passes this one to other engines than transformers only",
}


def check(identity: EvaluateConfig, execution: EvaluateExecution) -> list[Problem]:
    """Faults in `tasks` and `generation_parameters`. lighteval (13 s) is imported only if it has to be asked."""
    problems = []
    foreign = [task for task in identity.tasks if task not in ACORN_TASKS]
    if foreign:
        problems += _tasks(identity.tasks)
    if identity.generation_parameters:
        problems += _generation(identity)
    return problems


def _tasks(tasks: Sequence[str]) -> list[Problem]:
    from eval.lighteval import built_in_names

    # An `acorn:` name can only be a slip of the pen: no need to import anything to say so.
    own = all(task in ACORN_TASKS or task.startswith("acorn") for task in tasks)
    known = [*ACORN_TASKS] if own else [*ACORN_TASKS, *built_in_names()]
    problems = []
    for index, task in enumerate(tasks):
        name, _, shots = task.partition("|")
        name = name.split("@")[0]
        if task in ACORN_TASKS:
            continue
        if name not in known:
            near = get_close_matches(name, known, 1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else "see lighteval's list of tasks"
            problems.append(Problem(f"tasks.{index}", f"no task is called '{name}': {hint}"))
        elif name in ACORN_TASKS:
            problems.append(Problem(f"tasks.{index}", f"'{task}': {name} takes no examples, write '{name}'"))
        elif shots and not shots.isdecimal():
            problems.append(
                Problem(f"tasks.{index}", f"'{task}': after | goes the number of examples, as in '{name}|5'")
            )
    return problems


def _generation(identity: EvaluateConfig) -> list[Problem]:
    from pydantic import ValidationError

    from eval.lighteval import prepare

    prepare()
    from lighteval.models.model_input import GenerationParameters

    given = identity.generation_parameters
    problems = [Problem(f"generation_parameters.{name}", INSTEAD[name]) for name in given if name in INSTEAD]
    try:
        GenerationParameters(**given)
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0])
            near = get_close_matches(name, GenerationParameters.model_fields, 1, cutoff=0.4)
            unknown = f"lighteval's GenerationParameters has no '{name}'" + (
                f": did you mean '{near[0]}'?" if near else ""
            )
            message = unknown if fault["type"] == "extra_forbidden" else str(fault["msg"])
            problems.append(Problem(f"generation_parameters.{name}", message))
    return problems
