"""Asks lighteval about what a recipe passes through to it: task names and generation parameters."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from acorn.stage import Execution, Problem
from eval.config import ACORN_TASKS, EvaluateConfig, EvaluateExecution, TestSetsConfig

INSTEAD = {
    "max_new_tokens": "set config.max_new_tokens: lighteval cuts the prompt to this one",
    "seed": "set config.seed: lighteval passes this one to other engines than transformers only",
}


def check(identity: EvaluateConfig, execution: EvaluateExecution) -> list[Problem]:
    """Faults in `tasks`, `suites`, `define` and `generation_parameters`. lighteval (13 s) is imported only if it has to
    be asked."""
    problems = _tasks("tasks", identity.tasks, identity)
    for place, suite in enumerate(identity.suites):
        problems += _tasks(f"suites.{place}.tasks", suite.tasks, identity)
    if any(template.metrics for template in identity.templates.values()):
        problems += _metrics(identity)
    if identity.generation_parameters:
        problems += _generation(identity)
    return problems


def check_test_sets(identity: TestSetsConfig, execution: Execution) -> list[Problem]:
    """Faults in `tasks` and `define`."""
    return check(identity.evaluation(), EvaluateExecution.model_validate({}))


def _tasks(field: str, tasks: Sequence[str], identity: EvaluateConfig) -> list[Problem]:
    own = {*ACORN_TASKS, *identity.templates}
    names = {task: task.partition("|")[0].split("@")[0] for task in tasks}
    # An `acorn:` name can only be a slip of the pen: no need to import anything to say so.
    foreign = [task for task, name in names.items() if name not in own and not name.startswith("acorn")]
    known = [*own]
    if foreign:
        from eval.lighteval import built_in_names

        known += built_in_names()
    problems = []
    for index, task in enumerate(tasks):
        at, shots, name = f"{field}.{index}", task.partition("|")[2], names[task]
        if name not in known:
            near = get_close_matches(name, known, 1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else "see lighteval's list of tasks"
            problems.append(Problem(at, f"no task is called '{name}': {hint}"))
        elif name in ACORN_TASKS and task != name:
            problems.append(Problem(at, f"'{task}': {name} takes no examples, write '{name}'"))
        elif shots and not shots.isdecimal():
            problems.append(Problem(at, f"'{task}': after | goes the number of examples, as in '{name}|5'"))
    return problems


def _metrics(identity: EvaluateConfig) -> list[Problem]:
    from eval.lighteval import prepare

    prepare()
    from lighteval.metrics.metrics import Metrics

    from eval.data import ACC_NORM

    known = [ACC_NORM, *(metric.name for metric in Metrics)]
    return [
        Problem(
            f"define.{name}.metrics.{place}",
            f"lighteval has no metric '{metric}'{_near(metric, known)}",
        )
        for name, template in identity.templates.items()
        for place, metric in enumerate(template.metrics)
        if metric not in known
    ]


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1, cutoff=0.4)
    return f": did you mean '{near[0]}'?" if near else ""


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
