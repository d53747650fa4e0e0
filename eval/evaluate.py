"""The `evaluate` stage: every model on every task, in one process, through lighteval.

One process, because importing lighteval costs more than evaluating a small model; started by torchrun, several share
the batches of each task. A finished (model, task) pair is kept in the scratch folder, so a retry after a kill goes on
with the next one. All data is loaded and looked through before the first model is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acorn.stage import Job
from eval import contamination
from eval.config import ACORN_TASKS, ENDS, PLAIN_STOP, PROBLEMS, PROSE, EvaluateConfig
from eval.lighteval import prepare
from eval.results import Outcome, Results, final_metrics, show, write, write_json
from eval.searched import is_search, searched_models
from eval.suite import read_problems, read_prose

if TYPE_CHECKING:
    from eval.data import Ready
    from eval.model import ArtifactModel

Rows = Mapping[str, list[Any]]


def run(job: Job) -> dict[str, float]:
    """Evaluate the job's models; returns `eval/<role>/<task>/<metric>` and `contamination/<role>/<task>/...`.

    Raises ValueError, before lighteval is imported, for roles or corpora that do not fit the config; before a model is
    loaded, for data that does not fit a task.
    """
    config: EvaluateConfig = job.config
    given = {role: path for role, path in job.inputs.items() if role != "corpus"}
    searches = {role: path for role, path in given.items() if is_search(path)}
    models = {role: path for role, path in given.items() if role not in searches}
    _check_roles(config, given, models)
    rows = _read_corpus(config, job.inputs.get("corpus"), bool(searches))
    found = {role: searched_models(role, path, rows[PROBLEMS], config.seed) for role, path in searches.items()}
    ready: Mapping[str, Ready] = {}
    results: Results = {}
    with job.track() as tracker:
        if models:
            ready = _prepare(job)
        for role, folder in given.items():
            fresh = {role: _evaluate(job, role, folder, rows, ready)} if role in models else _by_name(found[role])
            results |= fresh
            tracker.log(final_metrics(fresh))
        if job.rank != 0:
            return {}
        overlap = _contamination(job, results, rows)
        tracker.log(overlap)
    write(job.out, results, _tasks(results, rows, ready), _protocol(job, models))
    show(results)
    contamination.show(job.out)
    return final_metrics(results) | overlap


def _check_roles(config: EvaluateConfig, given: Mapping[str, Path], models: Mapping[str, Path]) -> None:
    if not given:
        raise ValueError("there is no model to evaluate: add one to the step's inputs, under any role but `corpus`")
    if unknown := sorted(set(config.format) - set(models)):
        raise ValueError(
            f"config.format names {', '.join(unknown)}, but the step's models are {', '.join(models)}: use those roles"
        )
    for role, folder in models.items():
        chats = [task for task in config.all_tasks if task != PROSE and config.format_of(role, task) == "chat"]
        if chats and not _chat_template(folder):
            raise ValueError(
                f"the model under role '{role}' has no chat_template.jinja, but its format is chat ({chats[0]}): set "
                f"config.format to {{{role}: plain}}, or give its tokenizer a chat template"
            )


def _read_corpus(config: EvaluateConfig, corpus: Path | None, searched: bool) -> Rows:
    """Rows of each of acorn's tasks that is asked for; the problems too where a search is to be scored on them."""
    rows: dict[str, list[Any]] = {}
    if searched or PROBLEMS in config.all_tasks:
        rows[PROBLEMS] = list(read_problems(corpus, config))
    if PROSE in config.all_tasks:
        rows[PROSE] = list(read_prose(corpus, config))
    return rows


def _prepare(job: Job) -> Mapping[str, Ready]:
    prepare()
    from eval.data import prepare_tasks

    return prepare_tasks(job.config, job.scratch / "lighteval" / str(job.rank))


def _by_name(outcomes: Mapping[str, Outcome]) -> Results:
    return {name: {PROBLEMS: outcome} for name, outcome in outcomes.items()}


def _evaluate(job: Job, role: str, folder: Path, rows: Rows, ready: Mapping[str, Ready]) -> dict[str, Outcome]:
    """All tasks on one model; it is loaded only if a task is still to be done."""
    from accelerate.utils import patch_environment

    from eval.model import ArtifactModel
    from eval.tasks import run_task

    config: EvaluateConfig = job.config
    kept = job.scratch / "done" / hashlib.sha256(job.digests[role].encode()).hexdigest()[:16]
    outcomes: dict[str, Outcome] = {}
    model: ArtifactModel | None = None
    for task in config.all_tasks:
        form = config.format_of(role, task)
        done = kept / f"{form}-{hashlib.sha256(task.encode()).hexdigest()[:16]}.json"
        if done.exists():
            outcomes |= _kept(done)
            continue
        # lighteval asks accelerate, and accelerate takes any GPU it sees.
        with patch_environment(ACCELERATE_USE_CPU=str(job.device() == "cpu")):
            model = model or ArtifactModel(folder, form, config, job.execution, job.device())
            model.ask_in(form)
            configs = _configs(task, job, role, model, rows, ready)
            fresh = run_task(task, model, configs, config, job.scratch / "lighteval" / str(job.rank))
        if job.rank == 0:
            _keep(done, fresh)
        model.wait()  # or another process would look for what is not kept yet
        outcomes |= fresh
    if model:
        model.release()
    return outcomes


def _configs(task: str, job: Job, role: str, model: ArtifactModel, rows: Rows, ready: Mapping[str, Ready]) -> list[Any]:
    from eval.tasks import problems_task, prose_task

    data = job.scratch / "rows" / str(job.rank) / role
    model.samples = job.config.samples if task == PROBLEMS else 1
    if task == PROBLEMS:
        limit, folder = job.config.max_new_tokens, data / "problems"
        return [problems_task(rows[task], model, limit, folder, job.config.samples)]
    if task == PROSE:
        return [prose_task(rows[task], model, data / "prose")]
    return ready[task].configs


def _keep(file: Path, outcomes: Mapping[str, Outcome]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps({task: outcome.as_json() for task, outcome in outcomes.items()}))
    aside.replace(file)


def _kept(file: Path) -> dict[str, Outcome]:
    return {task: Outcome.from_json(outcome) for task, outcome in json.loads(file.read_text()).items()}


def _contamination(job: Job, results: Results, rows: Rows) -> dict[str, float]:
    """Hold the items against everything the models come from; writes contamination.json and .jsonl."""
    config: EvaluateConfig = job.config
    if config.contamination is None:
        return {}
    items = contamination.items_of(results, rows.get(PROBLEMS, []), rows.get(PROSE, []))
    figures, lines = contamination.search(items, job.ancestors, results, config.contamination)
    write_json(job.out / "contamination.json", figures)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (job.out / "contamination.jsonl").write_text(text, encoding="utf-8")
    return contamination.final_metrics(figures)


def _tasks(results: Results, rows: Rows, ready: Mapping[str, Ready]) -> dict[str, Any]:
    """What was asked, by task: acorn's with the size of their set, others with all that their config says."""
    facts = {name: about for one in ready.values() for name, about in one.about.items()}
    named = dict.fromkeys(task for outcomes in results.values() for task in outcomes)
    return {
        task: {"made_by": "acorn", "shots": 0, "samples": len(rows[task])} if task in ACORN_TASKS else facts[task]
        for task in named
    }


def _protocol(job: Job, models: Mapping[str, Path]) -> dict[str, Any]:
    """All that another laboratory needs to ask the same questions in the same way."""
    from importlib.metadata import version

    config: EvaluateConfig = job.config
    templates = {
        role: _chat_template(folder)
        for role, folder in models.items()
        if any(config.format_of(role, task) == "chat" for task in config.all_tasks)
    }
    hashes = {role: hashlib.sha256(template.encode()).hexdigest() for role, template in templates.items()}
    return {
        **config.model_dump(mode="json", exclude={"format", "data", "define", "suites"}),
        "suites": [suite.name for suite in config.suites],
        "templates": {name: one.model_dump(mode="json", exclude={"data"}) for name, one in config.templates.items()},
        "format": {role: _formats(config, role) for role in models},
        "digests": {role: digest for role, digest in job.digests.items() if role != "corpus"},
        "chat_template_sha256": hashes,
        "chat_templates": {hashes[role]: template for role, template in templates.items()},
        "answers_end_at": {"tokens": ["those of generation_config.json", *ENDS], "plain": PLAIN_STOP},
        "seeds": {"subsets, sampling, bootstrap": config.seed, "examples and order of lighteval's tasks": 42},
        "versions": {package: version(package) for package in ("lighteval", "transformers", "tokenizers", "torch")},
    }


def _formats(config: EvaluateConfig, role: str) -> str | dict[str, str]:
    """The model's format; by task where it has several."""
    found = {task: config.format_of(role, task) for task in config.all_tasks}
    return dict(found) if len(set(found.values())) > 1 else next(iter(found.values()))


def _chat_template(folder: Path) -> str:
    """The model's chat template; empty if it has none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return str(settings.get("chat_template") or "")
