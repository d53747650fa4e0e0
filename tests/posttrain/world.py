"""Toy rows, and a way to run a step in processes of their own, as the spine starts them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from acorn.stage import Job
from posttrain.stage import STAGES
from tests.jobs import run_here

SETTINGS = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "max_length": 96}


def write_chat(folder: Path, rows: int = 64) -> Path:
    """A `chat` artifact of one-step sums, each a user's turn and an assistant's."""
    draw = random.Random(0)
    lines = []
    for number in range(rows):
        a, b = draw.randint(1, 9), draw.randint(1, 9)
        messages = [
            {"role": "user", "content": f"Mia has {a} pens and buys {b} more. How many pens does she have?"},
            {"role": "assistant", "content": f"Mia buys {b}: {a}+{b}={a + b}\n\n#### {a + b}"},
        ]
        lines.append({"id": f"chat-{number}", "messages": messages, "source": "test", "level": 1})
    return _write(folder, lines)


def write_pairs(folder: Path, rows: int = 64) -> Path:
    """A `preferences` artifact: the right sum against one that is off by ten."""
    draw = random.Random(1)
    lines = []
    for number in range(rows):
        a, b = draw.randint(1, 9), draw.randint(1, 9)
        question = {"role": "user", "content": f"Mia has {a} pens and buys {b} more. How many pens does she have?"}
        right, wrong = (
            {"role": "assistant", "content": f"{a}+{b}={answer}\n\n#### {answer}"} for answer in (a + b, a + b + 10)
        )
        pair = {"prompt": [question], "chosen": [right], "rejected": [wrong]}
        lines.append({"id": f"pair-{number}", **pair, "level": 1})
    return _write(folder, lines)


def _write(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact that counts towards its digest, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def logged(job: Job, name: str) -> list[float]:
    """Values of a metric in the step's metrics file, in order, without the step's final figure."""
    lines = [json.loads(line) for line in (job.scratch / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line and line["step"] is not None]


def job_file(job: Job, path: Path) -> Path:
    """The job as the spine hands it to the step's processes."""
    description = {
        **{name: getattr(job, name) for name in ("recipe", "step", "stage", "group", "digests")},
        **{name: str(getattr(job, name)) for name in ("out", "scratch")},
        "config": job.config.model_dump(mode="json"),
        "execution": job.execution.model_dump(mode="json"),
        "inputs": {role: str(folder) for role, folder in job.inputs.items()},
    }
    path.write_text(json.dumps(description))
    return path


def finish(command: list[str], environ: Mapping[str, str], timeout: float = 540) -> tuple[int | None, str]:
    """(exit code, output) of a command in a process group of its own; the code is None if it had to be killed.

    The workers of a launcher are in sessions of their own, but die with it (`acorn.worker.die_with_parent`).
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env=dict(environ), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return code, output.read()


def run_and_die(job: Job, sync: int | None) -> None:
    """Run the step in this process, which kills itself outright at the `sync`-th file that a checkpoint syncs."""
    from posttrain import checkpoint

    real, calls = checkpoint._sync, iter(range(1_000_000))

    def sync_or_die(path: Path) -> None:
        if next(calls) == sync:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    checkpoint._sync = sync_or_die
    run_here({stage.name: stage for stage in STAGES}[job.stage], job)
