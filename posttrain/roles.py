"""Whether a step's config and its inputs fit each other; asked whenever a recipe is loaded, so without an import."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from acorn.stage import Problem
from posttrain.config import GrpoConfig, SoupConfig, TrlConfig

NO_ROWS = ("model", "tokenizer", "teacher", "corpus")
"""Roles that are not sets of rows with a weight."""


def check_weights(config: TrlConfig, roles: Mapping[str, str]) -> list[Problem]:
    """`weights` of inputs that the step does not have."""
    return _strangers(config.weights, [role for role in roles if role not in NO_ROWS])


def check_grpo(config: GrpoConfig, roles: Mapping[str, str]) -> list[Problem]:
    """`weights`, which mean nothing here: there is one corpus."""
    if not config.weights:
        return []
    message = "grpo reads one corpus; `rewards` has the weights of the rewards"
    return [Problem("config.weights", message)]


def check_soup(config: SoupConfig, roles: Mapping[str, str]) -> list[Problem]:
    """Fewer than two models, or weights that are not those of the inputs."""
    if len(roles) < 2:
        return [Problem("inputs", f"a soup is the average of at least two models, and this has {len(roles)}")]
    if config.weights and (missing := [role for role in roles if role not in config.weights]):
        return [Problem("config.weights", f"no weight for {', '.join(missing)}; name all inputs, or leave it out")]
    return _strangers(config.weights, roles)


def _strangers(named: Iterable[str], roles: Collection[str]) -> list[Problem]:
    problems = []
    for name in named:
        if name not in roles:
            near = difflib.get_close_matches(name, roles, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; inputs with a weight: {', '.join(roles)}"
            problems.append(Problem(f"config.weights.{name}", f"no input has the role `{name}`{hint}"))
    return problems
