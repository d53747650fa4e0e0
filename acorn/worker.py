"""The process in which a stage runs: reads its job, dies with its parent, leaves its result in the scratch folder."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from acorn.launch import kill_when_parent_dies
from acorn.stage import Ancestor, Job
from acorn.stages import stages
from acorn.tracking import METRICS_FILE

RESULT_FILE = "result.json"
WORKERS_LOCK = "workers.lock"


def work(job_file: Path) -> None:
    """Run the stage of a job file in this process (one of `world_size`)."""
    die_with_parent()
    description = json.loads(job_file.read_text(encoding="utf-8"))
    scratch = Path(description["scratch"])
    # Held until this process is gone: the next attempt waits for it, so that no orphan writes beside the new trainer.
    lock = (scratch / WORKERS_LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    perform(load_job(description))


def perform(job: Job) -> None:
    """Run the stage, and on rank 0 note its metrics, seconds and peak memory for the publication."""
    started = time.monotonic()
    metrics = stages()[job.stage].load(stages()[job.stage].run)(job)
    if job.rank != 0:
        return
    logged = job.scratch / METRICS_FILE
    if logged.exists():
        (job.out / "logs").mkdir(exist_ok=True)
        (job.out / "logs" / METRICS_FILE).write_bytes(logged.read_bytes())
    result = {
        "metrics": {name: value for name, value in metrics.items() if not name.startswith("ledger/")},
        "ledger": {
            **{name.removeprefix("ledger/"): value for name, value in metrics.items() if name.startswith("ledger/")},
            "seconds": round(time.monotonic() - started, 3),
            "peak_memory_bytes": peak_memory_bytes(),
        },
    }
    (job.scratch / RESULT_FILE).write_text(json.dumps(result))


def load_job(description: dict[str, Any]) -> Job:
    """A Job from its plain description; the configs are validated again by the stage's own classes."""
    stage = stages()[description["stage"]]
    return Job(
        recipe=description["recipe"],
        step=description["step"],
        stage=description["stage"],
        config=stage.identity.model_validate(description["config"]),
        execution=stage.execution.model_validate(description["execution"]),
        inputs={role: Path(path) for role, path in description["inputs"].items()},
        digests=dict(description["digests"]),
        out=Path(description["out"]),
        scratch=Path(description["scratch"]),
        group=description["group"],
        ancestors=tuple(_ancestor(one) for one in description.get("ancestors", [])),
    )


def _ancestor(one: dict[str, Any]) -> Ancestor:
    path = Path(one["path"]) if one["path"] else None
    return Ancestor(one["kind"], one["stage"], one["digest"], path, tuple(one["roles"]), tuple(one["made_into"]))


def peak_memory_bytes() -> int:
    """Largest resident size of this process or of any child it waited for; on CUDA, the device's peak if larger."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak = max(peak, torch.cuda.max_memory_allocated())
    return peak


def die_with_parent() -> None:
    """End this process when its parent is gone, however the parent died.

    Linux does it by itself; elsewhere a thread looks every half second.
    """
    parent = os.getppid()
    kill_when_parent_dies(parent)
    if sys.platform == "linux":
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
