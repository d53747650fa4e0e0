"""Typed config of the `evaluate` stage.

Everything that changes a score is identity; batch size and device are execution. Batch sizes change the padding, and
with it the last bits of a logit: on a model that hesitates between two tokens a greedy answer may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from acorn.stage import Execution, Identity, Launched, Source
from eval.catalogue import read_suite

PROBLEMS, PROSE = "acorn:problems", "acorn:prose"
ACORN_TASKS = (PROBLEMS, PROSE)
"""Tasks made from the corpus artifact: no network needed. All others are lighteval's."""

ENDS = ("<|endoftext|>", "<|im_end|>")
"""Tokens that end an answer, beside those of the model's generation_config.json."""
PLAIN_STOP = "\nProblem:"
"""Where a base model goes on to the next problem instead of ending the document."""

Format = Literal["plain", "chat"]


class TaskTemplate(Identity):
    """A task over rows of a data set, written as templates: `{question}` stands for the column `question`,
    `{choices[text]}` for the entry `text` of the column `choices`."""

    data: Source
    """A folder with `test-*.parquet` or `test*.jsonl` (as `split` says), or the hub's name of a data set."""
    subset: str | None = None
    """Of a hub data set: its configuration."""
    revision: str | None = None
    split: str = "test"
    prompt: str
    choices: str | tuple[str, ...] | None = None
    """The column with the list of choices, such as `choices.text`, or a template for each. None: answered freely."""
    answer: str
    """The column of the right choice (its index, its letter, or its text); of the expected answer where there are no
    choices."""
    labels: str | None = None
    """The column with the choices' labels, where `answer` holds one of those."""
    metrics: tuple[str, ...] = ()
    """lighteval's `Metrics` by their names, or `acc_norm`; default: `loglikelihood_acc` and `acc_norm` with choices,
    `exact_match` without."""
    shots_split: str | None = None
    """Split that examples are taken from."""
    max_new_tokens: int = Field(256, ge=1)
    stop: tuple[str, ...] = ("\n",)
    """Texts that end a free answer."""


class Suite(Identity):
    """Tasks under one name: what `eval/suites/<name>.yaml` holds."""

    name: str
    about: str = ""
    """What it is and where the list comes from."""
    format: Format | None = None
    """How its tasks are put to every model for which the step says nothing else; default: by the model's role."""
    tasks: tuple[str, ...] = Field(min_length=1)
    define: dict[str, TaskTemplate] = Field(default_factory=dict)


class Contamination(Identity):
    """The search for test items in everything that the models were made from."""

    n_grams: int = Field(13, ge=2)
    """Words in a row, without case, punctuation and accents."""
    share: float = Field(0.0, ge=0, lt=1)
    """An item overlaps if more than this share of its n-grams is found; 0: any."""


class EvaluateConfig(Identity):
    """What is asked, how it is put, and how answers are generated."""

    tasks: tuple[str, ...] = ACORN_TASKS
    """`acorn:problems`, `acorn:prose`, any task of lighteval's registry as lighteval spells it (`"gsm8k|5"`), or one of
    `define`. Default: acorn's two, or none where `suites` are given."""
    suites: tuple[Suite, ...] = ()
    """Names of eval/suites (`smollm2-base`) or paths of such files; what they hold is part of the key."""
    define: dict[str, TaskTemplate] = Field(default_factory=dict)
    """Tasks of your own by name."""
    data: dict[str, Source] = Field(default_factory=dict)
    """Task of lighteval -> a local folder in place of its hub data set: `test-*.parquet` or `test*.jsonl` inside, or in
    a folder of its subset's name. A group (`mmlu`) stands for all its tasks."""
    format: dict[str, Format] = Field(default_factory=dict)
    """Role -> `plain` (`Problem: ... Solution:`) or `chat` (the model's chat template); default: see `format_of`."""
    problems_per_level: int | None = Field(None, ge=1)
    """Held-out problems asked of each level, drawn with `seed`; default: all."""
    prose_documents: int | None = Field(None, ge=1)
    """Validation documents scored, drawn with `seed`; default: all."""
    max_samples: int | None = Field(None, ge=1)
    """Cap on the samples of each of lighteval's own tasks; default: all."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer to an `acorn:problems` question, in tokens; lighteval's own tasks bring their own limit."""
    samples: int = Field(1, ge=1)
    """Answers drawn to each `acorn:problems` question, for pass@k and maj@k; above 1 it needs a temperature."""
    generation_parameters: dict[str, Any] = Field(default_factory=dict)
    """lighteval's `GenerationParameters` by their own names; the default, temperature 0, is greedy."""
    system_prompt: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights and the arithmetic."""
    seed: int = Field(0, ge=0)
    """Draws the subsets, seeds sampling (temperature above 0) and the bootstrap of standard errors."""
    contamination: Contamination | None = Field(default_factory=lambda: Contamination.model_validate({}))
    """null: nothing is searched, and no ancestor enters the key."""

    @model_validator(mode="before")
    @classmethod
    def _read_suites(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("suites"):
            return data
        suites = [read_suite(suite) if isinstance(suite, str) else suite for suite in data["suites"]]
        return {"tasks": (), **data, "suites": suites}

    @model_validator(mode="after")
    def _several_answers_differ(self) -> EvaluateConfig:
        if self.samples > 1 and not self.generation_parameters.get("temperature"):
            raise ValueError(
                f"samples is {self.samples}, but at temperature 0 all are the same: set generation_parameters to "
                "{temperature: 1.0}"
            )
        return self

    @model_validator(mode="after")
    def _tasks_are_asked_in_one_way(self) -> EvaluateConfig:
        if not self.all_tasks:
            raise ValueError("there is nothing to ask: name tasks or suites")
        asked: dict[str, tuple[str, Format | None]] = {}
        for name, form, tasks in self._sources():
            for task in tasks:
                before, other = asked.setdefault(task, (name, form))
                if other != form:
                    raise ValueError(
                        f"{task} is in {before} ({other or 'by role'}) and in {name} ({form or 'by role'}): one step "
                        "asks a task in one format, make it two steps"
                    )
        defined: dict[str, TaskTemplate] = {}
        for templates in (self.define, *(suite.define for suite in self.suites)):
            for task, template in templates.items():
                if defined.setdefault(task, template) != template:
                    raise ValueError(f"{task} is defined in two ways: give one of them another name")
        return self

    @model_validator(mode="after")
    def _data_belongs_to_tasks(self) -> EvaluateConfig:
        names = {task.partition("|")[0].split("@")[0] for task in self.all_tasks}
        known = {*names, *(name.split(":")[0] for name in names)} - {*self.templates, *ACORN_TASKS, "acorn"}
        for task in self.data:
            if task not in known and task.split(":")[0] not in names:
                near = get_close_matches(task, known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"the step asks {', '.join(sorted(names))}"
                raise ValueError(f"data.{task}: no task of lighteval that is asked here is called so; {hint}")
        return self

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice: name each task once")
        return tasks

    def _sources(self) -> Iterator[tuple[str, Format | None, tuple[str, ...]]]:
        """Name, format and tasks of `tasks` and of each suite."""
        yield "tasks", None, self.tasks
        for suite in self.suites:
            yield f"suite {suite.name}", suite.format, suite.tasks

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Every task asked, each once, in order."""
        return tuple(dict.fromkeys(task for _, _, tasks in self._sources() for task in tasks))

    @property
    def templates(self) -> dict[str, TaskTemplate]:
        """Every task that is written as a template, of this step and its suites."""
        return {name: one for suite in self.suites for name, one in suite.define.items()} | self.define

    def format_of(self, role: str, task: str | None = None) -> Format:
        """How `task` is put to the model under `role`: as `format` says for the role, else as the task's suite says,
        else `plain` for a role called `base` and `chat` for every other."""
        suite = next((suite.format for suite in self.suites if task in suite.tasks), None)
        return self.format.get(role) or suite or ("plain" if role == "base" else "chat")

    @property
    def measures_on(self) -> dict[str, Any]:
        """Config of `test_sets` for the tasks that are not acorn's own, whose items lie in the input corpus."""
        foreign = [task for task in self.all_tasks if task not in ACORN_TASKS]
        names = {task.partition("|")[0] for task in foreign}
        define = {name: one.model_dump(mode="json") for name, one in self.templates.items() if name in names}
        return {"tasks": foreign, "define": define, "data": self.data} if foreign else {}

    @property
    def ancestor_kinds(self) -> tuple[str, ...]:
        """Kinds of artifacts that hold text a model may have been trained on."""
        return ("corpus", "chat", "preferences", "steps") if self.contamination else ()


class TestSetsConfig(Identity):
    """Identity of `test_sets`: the fields of the same names of `evaluate`."""

    __test__ = False  # Not a test class, whatever pytest thinks of the name.

    tasks: tuple[str, ...] = Field(min_length=1)
    define: dict[str, TaskTemplate] = Field(default_factory=dict)
    data: dict[str, Source] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_what_an_evaluation_can_ask(self) -> TestSetsConfig:
        if own := sorted(set(self.tasks) & set(ACORN_TASKS)):
            raise ValueError(f"{own[0]} is asked of a corpus, which is a test set itself: take it out of `tasks`")
        self.evaluation()
        return self

    def evaluation(self) -> EvaluateConfig:
        """The evaluation that asks these tasks."""
        return EvaluateConfig.model_validate(self.model_dump())


class EvaluateExecution(Launched):
    """How it runs. Several processes share the batches of each task."""

    batch_size: int | None = Field(None, ge=1)
    """Sequences at once in each process; default: what fits in memory (a part of 1 GiB on a CPU, lighteval's probing on
    a GPU)."""
    model_parallel: bool = False
    """Spread one model over all GPUs of the machine, in one process; for models larger than one GPU."""

    @model_validator(mode="before")
    @classmethod
    def _one_process_spreads_the_model(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("model_parallel"):
            return data
        if (data.get("processes") or 1) > 1:
            raise ValueError(
                f"model_parallel is for one process, processes is {data['processes']}: leave one of them out"
            )
        return {**data, "processes": 1}


class Demand(Identity):
    """One thing that a gate asks of the judged model's score in a metric of a task."""

    task: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    tolerance: float | None = Field(None, ge=0)
    """How much worse than the previous release the score may be, in the metric's own unit."""
    sure: bool = False
    """Ask it of the worse end of the 95 % interval, not of the score itself."""

    @model_validator(mode="after")
    def _asks_something(self) -> Demand:
        if self.at_least is None and self.at_most is None and self.tolerance is None:
            raise ValueError(
                f"{self.task} {self.metric}: nothing is demanded; give at_least, at_most, or tolerance against the "
                "previous release"
            )
        return self


class GateConfig(Identity):
    """Identity of `gate`."""

    demands: tuple[Demand, ...] = Field(min_length=1)
    previous_role: str | None = None
    """Role of the previous release in its evaluation; default: that of the judged model in this one."""


class GateExecution(Execution):
    """What happens once the gate is passed."""

    tags: dict[str, str] = Field(default_factory=dict)
    """Name in the registry -> role of the gate's input that it stands for from then on. Such a name is moved by a
    passed gate alone, until somebody takes it away (`acorn artifacts untag`)."""
