"""Runs pipelines of datatrove: on this machine, on Slurm, or on Ray, by execution config.

A task that has finished is marked in the step's scratch folder by datatrove itself, so a killed step goes on with the
tasks that are left. Slurm and Ray need `$ACORN_HOME` on a file system that all machines share.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from acorn.launch import available_cores
from acorn.stage import Problem
from corpus.config import PipelineExecution
from corpus.datatrove.slurm import COMMANDS, Slurm
from corpus.processes import in_processes

EXECUTORS: dict[str, type[PipelineExecutor]] = {
    "local": LocalPipelineExecutor,
    "slurm": SlurmPipelineExecutor,
    "ray": RayPipelineExecutor,
}
FILLED_IN = ("pipeline", "tasks", "workers", "logging_dir", "skip_completed", "depends", "depends_job_id", "self")
"""What acorn gives every executor itself."""
_LOCAL_FILLED_IN = ("start_method", "local_tasks", "local_rank_offset", "randomize_start_duration")
SMALLEST_TASK = 2_000
"""Documents below which a further process costs more than it saves, by default."""


def task_count(documents: int, execution: PipelineExecution) -> int:
    """Ranges into which the documents are cut."""
    if execution.tasks is not None:
        return execution.tasks
    return max(1, min(available_cores(), documents // SMALLEST_TASK))


def worker_count(tasks: int, execution: PipelineExecution) -> int:
    """Tasks at a time on this machine."""
    return max(1, min(execution.workers or available_cores(), tasks))


def execute(name: str, steps: Sequence[PipelineStep], tasks: int, execution: PipelineExecution, folder: Path) -> None:
    """Run `steps` as `tasks` tasks; returns when all are done.

    Raises what a step raised, or RuntimeError where a worker was killed or tasks of another machine did not finish.
    """
    # The count of tasks is part of the name: marks of an attempt with another count would mean other documents.
    executor = build(name, steps, tasks, execution, folder / f"{name}-{tasks}")
    logger.disable("datatrove")
    try:
        if isinstance(executor, Slurm):
            executor.run_to_the_end(execution.poll_seconds)
        else:
            executor.run()
    finally:
        logger.enable("datatrove")
    if left := executor.get_incomplete_ranks(skip_completed=True):
        logs = executor.logging_dir.resolve_paths("logs")
        raise RuntimeError(f"{name}: {len(left)} of {tasks} tasks did not finish, first {left[0]}; see {logs}")


def build(
    name: str, steps: Sequence[PipelineStep], tasks: int, execution: PipelineExecution, folder: Path
) -> PipelineExecutor:
    """The executor that `execution` asks for. Raises RuntimeError where its cluster is not to be found."""
    common: dict[str, Any] = {"pipeline": list(steps), "tasks": tasks, "logging_dir": str(folder)}
    if execution.executor == "local":
        return Local(workers=worker_count(tasks, execution), start_method="fork", **common, **execution.options)
    common["workers"] = execution.workers or -1
    if execution.executor == "slurm":
        if missing := [command for command in COMMANDS if shutil.which(command) is None]:
            where = "start acorn on a login node, or set it to local"
            raise RuntimeError(f"executor: slurm needs {missing[0]} on PATH: {where}")
        activate = Path(sys.prefix) / "bin" / "activate"
        here = {"venv_path": str(activate)} if activate.exists() else {}
        given = {"job_name": name, **({} if "condaenv" in execution.options else here), **execution.options}
        return Slurm(**common, **given)
    return RayPipelineExecutor(**common, **execution.options)


class Local(LocalPipelineExecutor):  # type: ignore[misc]
    """Without upstream's manager process; workers die with this one, and one that is killed is noticed."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank, rank)  # each task with counters and caches of its own
            return
        in_processes(self._task, ranks, self.workers)

    def _task(self, rank: int) -> None:
        self._run_for_rank(rank)


def faults(execution: PipelineExecution) -> list[Problem]:
    """Options that the executor does not take or that acorn gives itself, and required ones that are missing."""
    parameters = inspect.signature(EXECUTORS[execution.executor].__init__).parameters
    taken = FILLED_IN + (_LOCAL_FILLED_IN if execution.executor == "local" else ())
    known = [name for name in parameters if name not in taken]
    found = []
    for name in execution.options:
        if name in taken and name in parameters:
            found.append(Problem(f"execution.options.{name}", "acorn sets it: leave it out"))
        elif name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            found.append(Problem(f"execution.options.{name}", f"datatrove's executor has no '{name}': {hint}"))
    needed = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in execution.options]:
        message = f"datatrove's {execution.executor} executor needs {', '.join(missing)}: add them to options"
        found.append(Problem("execution.options", message))
    return found
