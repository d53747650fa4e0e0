"""The `gate` stage: a model passes if its scores are what the recipe demands, else nothing is published.

What it leaves says only which model passed, so that a demand that changes, or a release to compare with that moves on,
does not rebuild what waits behind the gate; the figures lie under logs/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from acorn.stage import Job, Problem
from eval.config import Demand, GateConfig
from eval.samples import by_metric, read_results, read_samples


class GateFailed(SystemExit):
    """The model does not pass; the message says what fell and by how much. No traceback: nothing is broken."""


def check_roles(config: GateConfig, roles: Mapping[str, str]) -> list[Problem]:
    """A tolerance needs something to be held against."""
    if "previous" in roles:
        return []
    return [
        Problem(
            f"config.demands.{place}.tolerance",
            'is against the previous release: add the input previous, such as "@release-eval?" (? for the first one)',
        )
        for place, demand in enumerate(config.demands)
        if demand.tolerance is not None
    ]


def run(job: Job) -> dict[str, float]:
    """Returns `gate/<task>/<metric>` of the judged model, and `.../difference` from the previous release.

    Raises GateFailed; ValueError for a model, task or metric that the evaluation has not.
    """
    config: GateConfig = job.config
    evaluation, previous = job.inputs["evaluation"], job.inputs.get("previous")
    role = judged_role(evaluation, job.digests["model"])
    verdicts = [_judge(demand, evaluation, role, previous, config.previous_role or role) for demand in config.demands]
    failed = [line for verdict in verdicts for line in verdict["failed"]]
    if failed:
        raise GateFailed("\n".join([f"gate '{job.step}': '{role}' does not pass.", *(f"  {line}" for line in failed)]))
    (job.out / "passed.json").write_text(json.dumps({"model": job.digests["model"]}, indent=1) + "\n")
    (job.out / "logs").mkdir()
    (job.out / "logs" / "verdicts.json").write_text(json.dumps({"role": role, "verdicts": verdicts}, indent=1) + "\n")
    metrics = {}
    for verdict in verdicts:
        metrics[f"gate/{verdict['task']}/{verdict['metric']}"] = verdict["value"]
        if verdict["against"]:
            metrics[f"gate/{verdict['task']}/{verdict['metric']}/difference"] = verdict["against"]["difference"]
    with job.track() as tracker:
        tracker.log(metrics)
    return metrics


def judged_role(evaluation: Path, digest: str) -> str:
    """The role under which the evaluation asked the model of this digest. Raises ValueError if it did not."""
    digests = json.loads((evaluation / "protocol.json").read_text(encoding="utf-8")).get("digests", {})
    for role, found in digests.items():
        if found == digest:
            return str(role)
    raise ValueError(
        f"the evaluation did not ask the gate's model ({digest[:12]}): it asked {', '.join(digests) or 'none'}; give "
        "both steps the same model"
    )


def _judge(demand: Demand, evaluation: Path, role: str, previous: Path | None, other: str) -> dict[str, Any]:
    score = _score(evaluation, role, demand)
    low, high = score["low"], score["high"]
    name = f"{demand.task} {demand.metric}"
    if demand.sure and (low is None or high is None):
        raise ValueError(f"{name} has no interval, so `sure` has no worse end to ask of; leave it out")
    of = f"{name} is {score['value']:.4g}{_range(low, high)}"
    failed = []
    # Comparisons are written so that NaN, which a diverged model scores, fails.
    if demand.at_least is not None and not (low if demand.sure else score["value"]) >= demand.at_least:
        failed.append(f"{of}, demanded is at least {demand.at_least:g}{_surely(demand)}")
    if demand.at_most is not None and not (high if demand.sure else score["value"]) <= demand.at_most:
        failed.append(f"{of}, demanded is at most {demand.at_most:g}{_surely(demand)}")
    against = None
    if demand.tolerance is not None and previous is not None:
        before = _score(previous, other, demand)
        against = _difference(demand, evaluation, role, previous, other)
        gained = against if score["higher_is_better"] else _turned(against)
        if not (gained["low"] if demand.sure else gained["difference"]) >= -demand.tolerance:
            failed.append(
                f"{name} fell by {-gained['difference']:.4g} [{-gained['high']:.4g}, {-gained['low']:.4g}] from "
                f"{before['value']:.4g} to {score['value']:.4g} (paired over {against['n']} items), allowed is "
                f"{demand.tolerance:g}{_surely(demand)}"
            )
    return {**demand.model_dump(), "value": score["value"], "low": low, "high": high, "against": against} | {
        "failed": failed
    }


def _surely(demand: Demand) -> str:
    return " at the worse end of the interval" if demand.sure else ""


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"


def _turned(gained: dict[str, Any]) -> dict[str, Any]:
    """The same difference where less is better."""
    return {**gained, "difference": -gained["difference"], "low": -gained["high"], "high": -gained["low"]}


def _score(evaluation: Path, role: str, demand: Demand) -> dict[str, Any]:
    models = read_results(evaluation)["models"]
    if role not in models:
        raise ValueError(f"the evaluation has no role '{role}': it has {', '.join(models)}; set previous_role")
    tasks = models[role]
    for kind, name, known in (
        ("task", demand.task, tasks),
        ("metric", demand.metric, tasks.get(demand.task, {})),
    ):
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"'{role}' has no {kind} '{name}': {hint}")
    found: dict[str, Any] = tasks[demand.task][demand.metric]
    return {"low": None, "high": None, "higher_is_better": True} | found


def _difference(demand: Demand, evaluation: Path, role: str, previous: Path, other: str) -> dict[str, Any]:
    """This minus previous, paired over the items of both."""
    from eval.statistics import paired  # numpy, which loading a recipe need not wait for

    now = by_metric(read_samples(evaluation, role).get(demand.task, [])).get(demand.metric, {})
    before = by_metric(read_samples(previous, other).get(demand.task, [])).get(demand.metric, {})
    shared = [identity for identity in now if identity in before]
    if not shared:
        raise ValueError(
            f"{demand.task} {demand.metric}: the two evaluations share no item to compare: ask both the same questions "
            "(corpus, problems_per_level and seed), or demand at_least instead"
        )
    found = paired([before[identity] for identity in shared], [now[identity] for identity in shared])
    return {"difference": found.difference, "low": found.low, "high": found.high, "n": found.n}
