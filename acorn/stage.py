"""The contract between the spine and a stage.

A stage package declares `STAGES` in its `stage.py`: plain data that costs no heavy import. The spine resolves a
recipe into keys with it, and starts one worker (or `processes` of them) that imports `Stage.run` and calls it with a
`Job`. Whatever `run` leaves in `job.out` becomes the artifact; `job.scratch` outlives a kill, so a retry resumes there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

if TYPE_CHECKING:
    from acorn.tracking import Tracker


TEST_KINDS = ("corpus", "test_sets")
"""Kinds of artifacts with texts that models are measured on: held-out problems and documents, items of benchmarks."""
GATE = "gate"
"""Kind of the artifact that a passed gate leaves, and the role under which any step may wait for one."""


@dataclass(frozen=True)
class Derived:
    """A field that nobody gave: `field` is its dotted path inside the config, `why` the rule and its source."""

    field: str
    value: Any
    why: str


class Identity(BaseModel):
    """Fields that change the result; all of them enter the artifact's key. Seeds belong here."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    dial_derives: ClassVar[tuple[str, ...]] = ()
    """Dotted fields that the config's `dial` derives, if it has one."""
    _derived: tuple[Derived, ...] = PrivateAttr(default=())

    @property
    def derived(self) -> tuple[Derived, ...]:
        """What the config's `dial` filled in, for `acorn plan` to tell."""
        return self._derived

    @property
    def ancestor_kinds(self) -> tuple[str, ...]:
        """Kinds of the artifacts in the inputs' lineage that `run` reads as `job.ancestors`; they enter the key."""
        return ()

    @property
    def keeps_out_tests(self) -> bool:
        """Whether `run` keeps out of its rows what models are measured on. Then the test sets of the recipe's
        evaluations become inputs (`acorn.tests_kept_out`), and `job.ancestors` are those in the inputs' lineage that
        are no inputs themselves."""
        return False

    @property
    def measures_on(self) -> dict[str, Any] | None:
        """Of an evaluation: config of a step of stage `test_sets` that writes down what it asks beside its input
        corpora, empty where that is nothing. None: this is no evaluation."""
        return None


class Execution(BaseModel):
    """Fields that must not change the result: device, process counts, micro-batch sizes, logging cadence."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    device: Literal["auto", "cpu", "cuda"] = "auto"


class Launched(Execution):
    """Execution of a stage that `torchrun` or `accelerate launch` starts."""

    processes: int | None = None
    """Processes on this node; default: the GPUs present, else 1."""
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    """`host:port` of node 0, required when `nodes` > 1."""
    accelerate: str | None = None
    """Accelerate config file for stages that `accelerate launch` starts; default: chosen from device and processes."""

    @model_validator(mode="after")
    def _nodes_meet_somewhere(self) -> Self:
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError(f"nodes={self.nodes} needs rendezvous: host:port of node 0")
        return self


@dataclass(frozen=True)
class SourceMark:
    """Marks a field that names outside data; see `Source`."""


Source = Annotated[str, SourceMark()]
"""A local path or a hub id. In the key a local path is replaced by the digest of its content, so moving data changes
nothing and editing it makes the step stale; a hub id stays as it is (pin it with a `revision` field)."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a step's config: `field` is its dotted path inside config or execution."""

    field: str
    message: str


@dataclass(frozen=True)
class Stage:
    """One kind of step. `run` and `check` are `"module:function"`, imported only in a worker; so is `check_roles`, but
    imported when a recipe is loaded."""

    name: str
    package: str
    version: int
    """Raise it when the same config and inputs give another result: every key of this stage changes."""
    identity: type[Identity]
    execution: type[Execution]
    output: str
    """Kind of the artifact made; docs/artifacts.md lists the kinds and their files."""
    run: str
    """`run(job: Job) -> dict[str, float]`: final metrics; `ledger/tokens` and `ledger/flops` go to the ledger."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """role -> kind; a role ending in `?` may be absent."""
    more: str | tuple[str, ...] | None = None
    """Kind, or kinds, of further inputs under roles of the recipe's choosing (an evaluation's models)."""
    check: str | None = None
    """`check(identity, execution) -> list[Problem]`: asks the stage's library about what is passed through to it."""
    check_roles: str | None = None
    """`check_roles(identity, roles) -> list[Problem]`: whether config and inputs fit each other; `field` begins with
    `config.` or `inputs.`. Called whenever the recipe is loaded, so without a heavy import."""
    cost: str | None = None
    """`cost(identity, execution, processes, inputs, made_by) -> dict`, for `acorn.costs`: `parameters`, `tokens`,
    `flops` of the whole step, `memory_bytes` of a process, `dtype`, maybe a `note`. It must not import torch."""
    launcher: Literal["python", "torchrun", "accelerate"] = "python"
    imports_torch: bool = False
    """Or transformers: several steps of a run share the seconds that it takes (`acorn.forkserver`)."""

    diff: str | None = None
    """`diff(left, right) -> tuple[dict, renderable]`: what differs between two artifacts of this stage beyond their
    configs, as data and as a table (`acorn artifacts diff`). Given are their folders."""

    def kinds_of(self, role: str) -> tuple[str, ...]:
        """Kinds that an input under `role` may have; none for a role that the stage does not know.

        Every stage takes a `gate`: a step with one runs only after it is passed.
        """
        kinds = self.inputs.get(role) or self.inputs.get(f"{role}?") or (GATE if role == GATE else self.more)
        return (kinds,) if isinstance(kinds, str) else kinds or ()

    def load(self, target: str) -> Callable[..., Any]:
        """Import `"module:function"`."""
        module, _, function = target.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]


def found_device(asked: str) -> str:
    """`"cuda"` or `"cpu"` for `auto`, `cuda` or `cpu`; imports torch to see.

    Raises RuntimeError for CUDA asked for and absent. Who asks may no longer fork processes that use CUDA.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("execution.device is cuda, but torch sees no CUDA device: set it to auto or cpu")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Ancestor:
    """An artifact that inputs of a job were made from, directly or not, where the stage asked for its kind."""

    kind: str
    stage: str
    digest: str
    path: Path | None
    """Its folder, verified and read-only; None where only its manifest is here."""
    roles: tuple[str, ...]
    """The inputs that descend from it."""
    made_into: tuple[str, ...]
    """Kinds of what was made of it directly, on the way to those inputs."""


@dataclass(frozen=True)
class Job:
    """One step at work, as a worker process sees it."""

    recipe: str
    step: str
    stage: str
    config: Any
    """The stage's `Identity`, validated."""
    execution: Any
    """The stage's `Execution`, validated."""
    inputs: dict[str, Path]
    """role -> folder of the input artifact, verified and read-only; in the recipe's order."""
    digests: dict[str, str]
    """role -> digest of the input artifact."""
    out: Path
    """What is here when `run` returns is published. Empty at the start of every attempt. Files under `logs/` are kept
    and hashed, but are no part of the artifact's digest: timings and other things that differ from run to run."""
    scratch: Path
    """Kept between attempts until the step is published: a trainer's checkpoints, finished shards."""
    group: str
    """Name of this run of the recipe: the W&B group."""
    ancestors: tuple[Ancestor, ...] = ()
    """Of the kinds that the config's `ancestor_kinds` names, with `keeps_out_tests` of `TEST_KINDS`; by digest."""

    @property
    def rank(self) -> int:
        """Global rank of this process: 0 when it is the only one."""
        return int(os.environ.get("RANK", "0"))

    @property
    def world_size(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    def device(self) -> str:
        """`"cuda"` or `"cpu"`; imports torch to see. Raises RuntimeError for CUDA asked for and absent."""
        return found_device(str(self.execution.device))

    def track(self, resume_step: int | None = None) -> Tracker:
        """Open the step's tracker (metrics.jsonl and W&B); a no-op on every rank but 0.

        `resume_step`: last step that the resumed checkpoint holds; later lines of an earlier attempt are dropped.
        """
        from acorn.tracking import Tracker

        return Tracker.open(self, resume_step)
