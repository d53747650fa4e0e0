"""A toy run of pre-training: 43k parameters, ten steps, token files with something to learn."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acorn.stage import Job
from acorn.tracking import Tracker
from benchmarks.pretraining import MODEL, VOCABULARY
from pretrain.stage import STAGES
from tests.jobs import make_job, run_here

PRETRAIN, HUB_MODEL = STAGES
CONFIG: dict[str, Any] = {
    "model": MODEL,
    "steps": 10,
    "sequence_length": 32,
    "global_batch_size": 8,
    "learning_rate_scheduler": {
        "learning_rate": 3e-3,
        "lr_warmup_steps": 2,
        "lr_decay_style": "cosine",
        "min_decay_lr": 3e-4,
    },
}
EXECUTION: dict[str, Any] = {"device": "cpu", "checkpoint_interval": 5, "log_interval": 1, "micro_batch_size": 4}


def write_tokens(folder: Path) -> Path:
    """A tokens artifact: counting with small jumps; validation ends in the middle of a window."""
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {"dtype": "uint16", "vocab_size": VOCABULARY}
    for seed, (split, count) in enumerate({"train": 5_000, "validation": 1_010}.items()):
        jumps = np.random.default_rng(seed).integers(1, 4, count)
        (4 + np.cumsum(jumps) % 400).astype("<u2").tofile(folder / f"{split}.bin")
        meta |= {f"{split}_tokens": count, f"{split}_bytes": 3 * count}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def job_in(
    folder: Path,
    tokens: Path,
    tokenizer: Path,
    config: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> Job:
    """A job of `pretrain` in `folder`, with what differs from CONFIG and EXECUTION, and further inputs."""
    given = {"tokens": tokens, "tokenizer": tokenizer, **(inputs or {})}
    return make_job(PRETRAIN, folder, {**CONFIG, **(config or {})}, {**EXECUTION, **(execution or {})}, given)


def train(job: Job) -> dict[str, float]:
    return run_here(PRETRAIN, job)


def logged(job: Job, name: str) -> list[float]:
    """The values of metric `name`, in order of steps."""
    lines = map(json.loads, (job.scratch / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@contextmanager
def sigterm_at(step: int, rank: int = 0) -> Iterator[None]:
    """SIGTERM to process `rank` while it logs `step`, twice, as a scheduler and a launcher both send it."""
    log, moment = Tracker.log, step

    def log_and_kill(self: Tracker, metrics: Mapping[str, float], step: int | None = None) -> None:
        log(self, metrics, step)
        if step == moment and int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "log", log_and_kill)
        yield


@contextmanager
def hanging_at(step: int) -> Iterator[None]:
    """Having logged `step` the run waits to be killed: it cannot end before, however fast the machine is."""
    log, moment = Tracker.log, step

    def log_and_hang(self: Tracker, metrics: Mapping[str, float], step: int | None = None) -> None:
        log(self, metrics, step)
        if step == moment:
            time.sleep(600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "log", log_and_hang)
        yield


def main(arguments: list[str]) -> None:
    """Run the jobs of a JSON list `[{"folder", "tokens", "tokenizer", "port", "config", "execution", "inputs"}]`.

    One with `"hang": step` does not get beyond that.

    One launch serves several topologies (an import of torch costs 2 to 3 s). Each needs a rendezvous of its own, at
    its `port`: process groups of one job would find the keys of the one before in the launcher's store.
    """
    for entry in json.loads(arguments[0]):
        if port := entry.pop("port", None):
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
        paths = {name: Path(entry.pop(name)) for name in ("folder", "tokens", "tokenizer")}
        inputs = {role: Path(folder) for role, folder in entry.pop("inputs", {}).items()}
        with hanging_at(entry.pop("hang", -1)):
            train(job_in(**paths, **entry, inputs=inputs))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
