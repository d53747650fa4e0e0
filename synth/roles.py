"""Do a step's config and inputs fit each other? Asked whenever a recipe is loaded, so nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from acorn.stage import Identity, Problem
from synth.config import JudgeRank, PreferencePairsConfig, RewardRank
from synth.making_config import ConstraintsConfig, Made, VerifiedConfig


def check_pairs(identity: Identity, roles: Iterable[str]) -> list[Problem]:
    """Prompts, judge and reward model of `preference_pairs`."""
    assert isinstance(identity, PreferencePairsConfig)
    given = set(roles)
    problems = []
    if identity.rank is None and "prompts" in given:
        message = "without `rank` samples are compared with a problem's answer, and these prompts have none"
        problems.append(Problem("inputs.prompts", message))
    if not {"corpus", "prompts"} & given:
        problems.append(Problem("inputs", "name where the prompts come from: `corpus` or, with `rank`, `prompts`"))
    if isinstance(identity.rank, JudgeRank):
        problems += _model(identity.rank.llm, "config.rank.llm", "judge", given)
    if isinstance(identity.rank, RewardRank) and identity.rank.model is None and "reward" not in given:
        problems.append(Problem("config.rank", "name the reward model: a `reward` input or `rank.model`"))
    return problems


def check_making(identity: Identity, roles: Iterable[str]) -> list[Problem]:
    """Who writes, who judges, and what is read."""
    assert isinstance(identity, Made)
    given = set(roles)
    problems = _model(identity.llm, "config.llm", "model", given)
    filters = identity.filters
    if filters.tags is not None:
        problems += _model(filters.tags.llm, "config.filters.tags.llm", "judge", given)
    for name, role in (("reward", "reward"), ("embedding", "embedder")):
        wanted = getattr(filters, name)
        if wanted is not None and wanted.model is None and role not in given:
            problems.append(Problem(f"config.filters.{name}", f"name its model: a `{role}` input or `{name}.model`"))
    if isinstance(identity, ConstraintsConfig) and identity.instructions is None and "prompts" not in given:
        problems.append(Problem("config.instructions", "name a file of instructions, or a `prompts` input"))
    if isinstance(identity, VerifiedConfig) and identity.tasks is None and "corpus" not in given:
        problems.append(Problem("config.tasks", "name a file of problems, or a `corpus` input"))
    return problems


def _model(llm: dict[str, Any], field: str, role: str, given: set[str]) -> list[Problem]:
    kind = llm["type"]
    roles = {"gguf", role} if kind == "gguf" else {role}
    if kind in ("model", "vllm", "gguf") and not llm.get("model") and not roles & given:
        named = "` or `".join(sorted(roles))
        return [Problem(f"{field}.type", f"{kind!r} needs a `{named}` input, or `model` beside the type")]
    if kind == "teacher":
        return [Problem(f"{field}.type", "the teacher knows word problems and small talk alone: choose another type")]
    return []
