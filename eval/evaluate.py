"""The `evaluate` stage: every model on every task, in one process, through lighteval.

One process, because importing lighteval costs more than evaluating a small model. A finished (model, task) pair is
kept in the scratch folder, so a retry after a kill goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acorn.stage import Job
from eval.config import ACORN_TASKS, ENDS, PLAIN_STOP, PROBLEMS, PROSE, EvaluateConfig
from eval.lighteval import prepare
from eval.results import Outcome, Results, final_metrics, show, write
from eval.suite import read_problems, read_prose


def run(job: Job) -> dict[str, float]:
    """Evaluate the job's models; returns `eval/<role>/<task>/<metric>`.

    Raises ValueError, before lighteval is imported, for roles or corpora that do not fit the config.
    """
    config: EvaluateConfig = job.config
    folders = {role: path for role, path in job.inputs.items() if role != "corpus"}
    _check_roles(config, folders)
    rows = _read_corpus(config, job.inputs.get("corpus"))
    prepare()
    from accelerate.utils import patch_environment

    results: Results = {}
    # lighteval asks accelerate, and accelerate takes any GPU it sees.
    with patch_environment(ACCELERATE_USE_CPU=str(job.device() == "cpu")), job.track() as tracker:
        for role, folder in folders.items():
            results[role] = _evaluate(job, role, folder, rows)
            tracker.log(final_metrics({role: results[role]}))
    if job.rank == 0:
        write(job.out, results, _tasks(results, config, rows), _protocol(config, folders))
        show(results)
    return final_metrics(results)


def _check_roles(config: EvaluateConfig, folders: Mapping[str, Path]) -> None:
    if not folders:
        raise ValueError("there is no model to evaluate: add one to the step's inputs, under any role but `corpus`")
    if unknown := sorted(set(config.format) - set(folders)):
        raise ValueError(
            f"config.format names {', '.join(unknown)}, but the step's models are {', '.join(folders)}: use those roles"
        )
    for role, folder in folders.items():
        if config.format_of(role) == "chat" and not _chat_template(folder):
            raise ValueError(
                f"the model under role '{role}' has no chat_template.jinja, but its format is chat: set config.format "
                f"to {{{role}: plain}}, or give its tokenizer a chat template"
            )


def _read_corpus(config: EvaluateConfig, corpus: Path | None) -> dict[str, list[Any]]:
    """Rows of each of acorn's tasks that is asked for."""
    rows: dict[str, list[Any]] = {}
    for task in config.tasks:
        if task == PROBLEMS:
            rows[task] = list(read_problems(corpus, config))
        elif task == PROSE:
            rows[task] = list(read_prose(corpus, config))
    return rows


def _evaluate(job: Job, role: str, folder: Path, rows: Mapping[str, list[Any]]) -> dict[str, Outcome]:
    """All tasks on one model; it is loaded only if a task is still to be done."""
    from eval.model import ArtifactModel
    from eval.tasks import problems_task, prose_task, run_task

    config: EvaluateConfig = job.config
    form = config.format_of(role)
    kept = job.scratch / "done" / f"{hashlib.sha256(job.digests[role].encode()).hexdigest()[:16]}-{form}"
    data = job.scratch / "rows" / role
    outcomes: dict[str, Outcome] = {}
    model: ArtifactModel | None = None
    for task in config.tasks:
        done = kept / f"{hashlib.sha256(task.encode()).hexdigest()[:16]}.json"
        if done.exists():
            outcomes |= _kept(done)
        else:
            model = model or ArtifactModel(folder, form, config, job.execution, job.device())
            own = None
            if task == PROBLEMS:
                own = problems_task(rows[task], model, config.max_new_tokens, data / "problems")
            elif task == PROSE:
                own = prose_task(rows[task], model, data / "prose")
            fresh = run_task(task, model, own, config, job.scratch / "lighteval")
            if job.rank == 0:
                _keep(done, fresh)
            outcomes |= fresh
    if model:
        model.release()
    return outcomes


def _keep(file: Path, outcomes: Mapping[str, Outcome]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps({task: outcome.as_json() for task, outcome in outcomes.items()}))
    aside.replace(file)


def _kept(file: Path) -> dict[str, Outcome]:
    return {task: Outcome.from_json(outcome) for task, outcome in json.loads(file.read_text()).items()}


def _tasks(results: Results, config: EvaluateConfig, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What was asked, by task: acorn's with the size of their set, lighteval's with the cap on it."""
    named = dict.fromkeys(task for outcomes in results.values() for task in outcomes)
    about: dict[str, Any] = {}
    for task in named:
        if task in ACORN_TASKS:
            about[task] = {"made_by": "acorn", "samples": len(rows[task])}
        else:
            about[task] = {"made_by": "lighteval", "max_samples": config.max_samples}
    return about


def _protocol(config: EvaluateConfig, folders: Mapping[str, Path]) -> dict[str, Any]:
    """All that another laboratory needs to ask the same questions in the same way."""
    from importlib.metadata import version

    return {
        **config.model_dump(mode="json", exclude={"format"}),
        "format": {role: config.format_of(role) for role in folders},
        "chat_template_sha256": {
            role: hashlib.sha256(_chat_template(folder).encode()).hexdigest()
            for role, folder in folders.items()
            if config.format_of(role) == "chat"
        },
        "answers_end_at": {"tokens": ["those of generation_config.json", *ENDS], "plain": PLAIN_STOP},
        "versions": {package: version(package) for package in ("lighteval", "transformers", "tokenizers", "torch")},
    }


def _chat_template(folder: Path) -> str:
    """The model's chat template; empty if it has none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return str(settings.get("chat_template") or "")
