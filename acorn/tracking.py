"""Where a step's metrics go: `metrics.jsonl` beside the artifact, and Weights & Biases.

One W&B group per run of a recipe, `job_type` = stage, the same metric names everywhere (docs/artifacts.md). Offline
unless a key is set; `WANDB_MODE` is respected. The file is the record (the report is drawn from it); W&B is the window.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from acorn.stage import Job

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Logs metrics of one step. Use as a context manager; only rank 0's writes anything."""

    def __init__(self, path: Path | None, run: Any = None) -> None:
        self._file = path.open("a", buffering=1) if path else None
        self._run = run

    @classmethod
    def open(cls, job: Job, resume_step: int | None = None) -> Tracker:
        """Tracker of `job`; lines after `resume_step` (all lines, if None) of an earlier attempt are dropped."""
        if job.rank != 0:
            return cls(None)
        path = job.scratch / METRICS_FILE
        _keep_until(path, resume_step)
        return cls(path, _start_wandb(job))

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record `metrics` (`"train/loss": 2.3`) at `step`; a missing step means a figure of the whole step."""
        if self._file is None:
            return
        line = {"step": step, "time": round(time.time(), 3), **metrics}
        self._file.write(json.dumps(line) + "\n")
        if self._run is not None:
            self._run.log(dict(metrics), step=step)

    def close(self, exit_code: int = 0) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(exit_code=1 if kind else 0)


def wandb_mode() -> str:
    """`WANDB_MODE` where it is set, else `online` with a key and `offline` without one."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "wandb" in netrc.read_text())
    return "online" if has_key else "offline"


def _start_wandb(job: Job) -> Any:
    mode = wandb_mode()
    if mode == "disabled":
        return None
    import wandb

    os.register_at_fork(after_in_child=_forget_wandb_hooks)
    try:
        return _init_wandb(job, mode)
    except wandb.errors.CommError as error:  # a key, but no way to the server: training must not depend on it
        print(f"W&B cannot be reached, this run is kept offline (send it later with `wandb sync`): {error}")
        return _init_wandb(job, "offline", suffix="-offline")  # the first attempt keeps its id to itself


def _init_wandb(job: Job, mode: str, suffix: str = "") -> Any:
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "acorn"),
        group=job.group,
        job_type=job.stage,
        name=job.step,
        id=re.sub(r"[^\w.-]", "-", f"{job.group}-{job.step}{suffix}"),
        resume="allow" if mode == "online" else None,
        mode=cast(Literal["online", "offline", "disabled", "shared"], mode),
        config={
            "recipe": job.recipe,
            "config": job.config.model_dump(mode="json"),
            "execution": job.execution.model_dump(mode="json"),
            "inputs": job.digests,
        },
        settings=wandb.Settings(console="off", silent=True, disable_code=True, init_timeout=30),
    )


def _forget_wandb_hooks() -> None:
    """In a forked child (distilabel's steps), let an import not report to the parent's run.

    wandb 0.31 counts imports of other libraries as telemetry of the run, through import hooks that raise ForkedError
    in a child: importing transformers there fails.
    """
    from wandb.sdk.lib import import_hooks

    import_hooks.unregister_all_post_import_hooks()


def _keep_until(path: Path, resume_step: int | None) -> None:
    """Drop the lines after `resume_step`, and a last line cut short by a kill; rewritten aside, then renamed."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines(keepends=True):
        if resume_step is None or not text.endswith("\n"):
            continue
        step = json.loads(text)["step"]
        if step is not None and step <= resume_step:
            kept.append(text)
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(kept))
    aside.replace(path)
