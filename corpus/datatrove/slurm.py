"""datatrove's job arrays on Slurm; those that a killed attempt left in the queue are waited for, not doubled."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.executor import SlurmPipelineExecutor

from acorn.launch import Terminated

COMMANDS = ("sbatch", "squeue", "scancel")


class Slurm(SlurmPipelineExecutor):  # type: ignore[misc]
    """Writes the ids of the arrays that it submits to `slurm_jobs` beside the marks of the finished tasks."""

    job_id_retriever: Callable[[str], str]
    """Finds the id in what sbatch printed; upstream's."""

    def run_to_the_end(self, seconds: float) -> None:
        """Wait for the arrays of an attempt before this one, submit what they leave, and wait for that.

        Looks every `seconds`. An interrupt or SIGTERM cancels the arrays before it goes on.
        """
        submitted = Path(self.logging_dir.resolve_paths("slurm_jobs"))
        with _terminable():
            try:
                self._wait(_read(submitted), seconds)
                if self.get_incomplete_ranks():
                    submitted.unlink(missing_ok=True)
                    self.job_id_retriever = partial(_noted, submitted, self.job_id_retriever)
                    self.run()
                    self._wait(_read(submitted), seconds)
            except KeyboardInterrupt:
                for job in _read(submitted):
                    _ask("scancel", job)
                raise

    def launch_merge_stats(self) -> None:
        """Not: upstream's job for it stays in the queue for ever when a task has failed, and nothing here reads it."""

    def _wait(self, jobs: Sequence[str], seconds: float) -> None:
        """Until every task is marked as done, or the queue knows none of `jobs` any more."""
        while jobs and self.get_incomplete_ranks(skip_completed=True):
            gone = not any(in_queue(job) for job in jobs)
            time.sleep(seconds)  # also behind the end: a shared file system may show the last marks late
            if gone:
                return


def in_queue(job: str) -> bool:
    """Whether Slurm still has the job; True where it gives no answer, as while its controller starts again."""
    answer = _ask("squeue", "--noheader", "--jobs", job)
    if answer.returncode == 0:
        return bool(answer.stdout.strip())
    if "invalid job id" in answer.stderr.lower():  # what it says of jobs that ended some minutes ago
        return False
    print(f"squeue does not answer, asking again: {answer.stderr.strip()}", file=sys.stderr)
    return True


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _read(submitted: Path) -> list[str]:
    return submitted.read_text(encoding="utf-8").split() if submitted.exists() else []


def _noted(submitted: Path, find: Callable[[str], str], output: str) -> str:
    """The id in what sbatch printed, put down at once: with many tasks there are several arrays."""
    job = find(output)
    with submitted.open("a", encoding="utf-8") as file:
        file.write(f"{job}\n")
    return job


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, by which acorn ends a step, as an exception."""

    def end(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
