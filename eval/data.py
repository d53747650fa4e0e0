"""What a task asks, before any model is loaded: lighteval's configs over hub data, local folders and templates.

Everything that can be wrong with data is found here, in `prepare_tasks`: a folder that is not there, a split or a
column that is missing, a row that cannot be read. Import it after `eval.lighteval.prepare()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
from lighteval.metrics.metrics import Metrics
from lighteval.metrics.metrics_sample import LoglikelihoodAcc
from lighteval.metrics.normalizations import LogProbCharNorm
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.prompt_manager import FewShotSampler
from lighteval.tasks.registry import Registry
from lighteval.tasks.requests import Doc, SamplingMethod

from eval.config import ACORN_TASKS, EvaluateConfig, TaskTemplate
from eval.lighteval import built_in_tasks

ACC_NORM = "acc_norm"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Ready:
    """A task string of the step with the configs that it stands for (several for a group) and what was asked."""

    configs: list[Any]
    about: dict[str, dict[str, Any]]
    """Full name (`gsm8k|5`) -> facts for results.json."""
    questions: dict[str, list[str]]
    """Full name -> the prompt of each item, without examples."""


def prepare_tasks(config: EvaluateConfig, scratch: Path) -> dict[str, Ready]:
    """Every task but acorn's own, its data loaded and looked through once.

    Raises ValueError for data that is not there or does not fit; `scratch` keeps what `datasets` makes of local files.
    """
    ready = {}
    foreign = [task for task in config.all_tasks if task not in ACORN_TASKS]
    for task in foreign:
        name, shots = _parts(task)
        template = config.templates.get(name)
        if template:
            configs = [template_config(name, template, shots)]
        else:
            configs = [_with_data(one, config.data) for one in _built_in(task)]
        with datasets_cache(scratch if any(_is_local(one) for one in configs) else None):
            seen = {one.full_name: _looked_through(one, config) for one in configs}
        about = {name: facts for name, (facts, _) in seen.items()}
        ready[task] = Ready(configs, about, {name: questions for name, (_, questions) in seen.items()})
    return ready


@contextmanager
def datasets_cache(folder: Path | None) -> Iterator[None]:
    """Inside, `datasets` keeps its copies of local rows in `folder` (None: in the user's cache), not in their home."""
    place = folder / "datasets" if folder else datasets.config.HF_DATASETS_CACHE
    with patch.object(datasets.config, "HF_DATASETS_CACHE", place):
        yield


@contextmanager
def examples_of_others() -> Iterator[None]:
    """Inside, no item is its own example where examples come from the split that is asked.

    lighteval 0.13 means to leave the item out, but compares it, already filled in, with a fresh copy: never equal.
    """
    original = FewShotSampler.sample_fewshot_examples

    def sample(self: Any, num_fewshot: int, *arguments: Any, formatted_doc: Any = None, **more: Any) -> list[Any]:
        if not num_fewshot or not _asks_its_examples(self.task):
            return list(original(self, num_fewshot, *arguments, formatted_doc=formatted_doc, **more))
        found = original(self, num_fewshot + 1, *arguments, formatted_doc=formatted_doc, **more)
        return [one for one in found if one.query != formatted_doc.query][:num_fewshot]

    with patch.object(FewShotSampler, "sample_fewshot_examples", sample):
        yield


def _asks_its_examples(task: Any) -> bool:
    return task.fewshot_split in (None, *task.evaluation_split)


def as_module(configs: Iterable[Any]) -> ModuleType:
    """A module as lighteval reads custom tasks from."""
    module = ModuleType("acorn_tasks")
    module.TASKS_TABLE = list(configs)  # type: ignore[attr-defined]
    return module


def template_config(name: str, template: TaskTemplate, shots: int) -> Any:
    """lighteval's config of a task that is written as a template. Raises ValueError for an unknown metric."""
    local = Path(template.data).expanduser()
    config = LightevalTaskConfig(
        name=name,
        prompt_function=_prompt_function(template),
        hf_repo=str(local.resolve()) if local.exists() else template.data,
        hf_subset="default" if local.exists() else template.subset or "default",
        hf_revision=template.revision,
        hf_avail_splits=[template.split, *([template.shots_split] if template.shots_split else [])],
        evaluation_splits=[template.split],
        few_shots_split=template.shots_split or template.split,
        few_shots_select="sequential",
        metrics=[named_metric(metric) for metric in metric_names(template)],
        generation_size=template.max_new_tokens,
        stop_sequence=list(template.stop),
        num_fewshots=shots,
    )
    config.full_name = f"{name}|{shots}"
    return config


def metric_names(template: TaskTemplate) -> tuple[str, ...]:
    default = ("exact_match",) if template.choices is None else ("loglikelihood_acc", ACC_NORM)
    return template.metrics or default


def named_metric(name: str) -> Any:
    """A metric of lighteval by its name. Raises ValueError for one it does not have."""
    if name == ACC_NORM:  # of log-probabilities by characters, as lm-evaluation-harness has it
        return SampleLevelMetric(
            metric_name=ACC_NORM,
            higher_is_better=True,
            category=SamplingMethod.LOGPROBS,
            sample_level_fn=LoglikelihoodAcc(logprob_normalization=LogProbCharNorm(ignore_first_space=True)),
            corpus_level_fn=np.mean,
        )
    try:
        return Metrics[name].value
    except KeyError:
        raise ValueError(f"lighteval has no metric '{name}'") from None


def _parts(task: str) -> tuple[str, int]:
    name, _, shots = task.partition("|")
    return name, int(shots or 0)


def _built_in(task: str) -> list[Any]:
    """Configs of one of lighteval's tasks or groups."""
    with built_in_tasks():
        return [one for configs in Registry(tasks=task).task_to_configs.values() for one in configs]


def _with_data(config: Any, data: Mapping[str, str]) -> Any:
    """`config` over a folder of the user's, where there is one for the task or its group."""
    given = data.get(config.name) or data.get(config.name.split(":")[0])
    if given is None:
        return config
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.{config.name}: no folder {given}: give one with test-*.parquet or test*.jsonl files")
    inner = folder / config.hf_subset
    full_name = config.full_name  # of __post_init__, which knows nothing of the examples
    config = dataclasses.replace(
        config, hf_repo=str((inner if inner.is_dir() else folder).resolve()), hf_subset="default", hf_revision=None
    )
    config.full_name = full_name
    return config


def _is_local(config: Any) -> bool:
    return Path(config.hf_repo).is_dir()


def _looked_through(config: Any, options: EvaluateConfig) -> tuple[dict[str, Any], list[str]]:
    """Load the data, build every prompt; gives what results.json tells about the task, and the prompts.

    Raises ValueError naming the split or the column that is missing.
    """
    task = LightevalTask(config)
    where = config.hf_repo if not _is_local(config) else f"folder {Path(config.hf_repo).name}"
    try:
        task.dataset = LightevalTask.download_dataset_worker(task)
    except Exception as error:  # of whatever library `datasets` reads the format or asks the hub with
        raise ValueError(
            f"task {config.full_name}: its data ({where}) cannot be loaded: {error}. Without a network give a local "
            f"folder: data: {{'{config.name}': FOLDER}}"
        ) from error
    found = list(task.dataset)
    needed = [*config.evaluation_splits, *([task.fewshot_split] if config.num_fewshots and task.fewshot_split else [])]
    if missing := sorted({split for split in needed if split not in found}):
        raise ValueError(
            f"task {config.full_name} needs the split {', '.join(missing)}, but its data ({where}) has "
            f"{', '.join(found)}: name the files {missing[0]}-*.parquet or {missing[0]}.jsonl"
        )
    asked = _built(task.eval_docs, config, task.dataset[config.evaluation_splits[0]].column_names, where)
    if not asked:
        raise ValueError(f"task {config.full_name}: the split {needed[0]} of its data ({where}) has no row to ask")
    if config.num_fewshots:
        shots = _built(task.fewshot_docs, config, task.dataset[needed[-1]].column_names, where)
        least = config.num_fewshots + _asks_its_examples(task)
        if len(shots) < least:
            raise ValueError(
                f"task {config.full_name} needs {least} rows for its examples, but {where} has {len(shots)}"
            )
    questions = [str(doc.query) for doc in asked]
    about = {
        "made_by": "template" if config.name in options.templates else "lighteval",
        "version": str(config.version),
        "data": "local" if _is_local(config) else config.hf_repo,
        "subset": config.hf_subset,
        "revision": config.hf_revision,
        "splits": list(config.evaluation_splits),
        "shots": config.num_fewshots,
        "shots_from": needed[-1] if config.num_fewshots else None,
        "max_new_tokens": config.generation_size,
        "stop": list(config.stop_sequence),
        "samples": len(asked),
        "max_samples": options.max_samples,
        "questions_sha256": hashlib.sha256("\0".join(questions).encode()).hexdigest(),
    }
    return about, questions


def _built(build: Callable[[], list[Any]], config: Any, columns: Sequence[str], where: str) -> list[Any]:
    try:
        return build()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        have = ", ".join(column for column in columns if not column.startswith("__"))
        what = f"the column {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"task {config.full_name}: its prompt cannot be built from a row of {where}: {what} is missing or does not "
            f"fit; the columns are {have}"
        ) from error


def _prompt_function(template: TaskTemplate) -> Callable[[dict[str, Any], str], Doc]:
    def prompt(row: dict[str, Any], name: str) -> Doc:
        query = template.prompt.format_map(row)
        if template.choices is None:
            return Doc(query=query, choices=[f" {_entry(row, template.answer)}"], gold_index=0, task_name=name)
        if isinstance(template.choices, str):
            choices = [str(choice) for choice in _entry(row, template.choices)]
        else:
            choices = [choice.format_map(row) for choice in template.choices]
        gold = _gold(_entry(row, template.answer), choices, row, template)
        return Doc(query=query, choices=[f" {choice}" for choice in choices], gold_index=gold, task_name=name)

    return prompt


def _entry(row: Mapping[str, Any], path: str) -> Any:
    """`row["a"]["b"]` for `a.b`. Raises KeyError."""
    value: Any = row
    for part in path.split("."):
        value = value[part]
    return value


def _gold(answer: Any, choices: Sequence[str], row: Mapping[str, Any], template: TaskTemplate) -> int:
    """Index of the right choice. Raises ValueError for an answer that is none of them."""
    if template.labels:
        labels = [str(label) for label in _entry(row, template.labels)]
        if str(answer) in labels:
            return labels.index(str(answer))
    elif str(answer).isdecimal() and int(answer) < len(choices):
        return int(answer)
    elif answer in choices:
        return choices.index(answer)
    elif str(answer) in LETTERS[: len(choices)] and len(str(answer)) == 1:
        return LETTERS.index(str(answer))
    raise ValueError(f"the answer {answer!r} is none of its {len(choices)} choices")
