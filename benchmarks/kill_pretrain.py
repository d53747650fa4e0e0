"""Pre-training killed with SIGKILL at random moments, again and again: does it end with the same bytes?

    python -m benchmarks.kill_pretrain --kills 50

One run is left alone; then the same run is started and killed after a random time, until it comes to its end between
two kills; then another one begins, until there were as many kills as asked for. All files of every finished artifact
(weights, configs) and all logged losses must be those of the run left alone. Attempts are forks of one process that has
imported torch, so that most kills hit set-up, training, checkpoints and conversion rather than imports.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from acorn.stage import Job
from benchmarks.pretraining import MODEL, Fleet, logged, make_job, write_inputs
from pretrain.checkpoints import CheckpointFolder

EXACT = ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens")


def main() -> None:
    options = parse()
    fleet = Fleet("cpu", 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_inputs(folder)
        config = configure(options.steps, options.dtype)
        execution = {"device": "cpu", "log_interval": 1, "checkpoint_interval": options.interval}

        def new_job(place: str) -> Job:
            return make_job(folder / place, inputs, config, execution)

        alone = new_job("alone")
        started = time.monotonic()
        fleet.run(alone)
        seconds = time.monotonic() - started
        print(f"left alone: {options.steps} steps in {seconds:.1f} s, loss {logged(alone, 'train/loss')[-1]:.4f}")
        hits, attempts = kill_again_and_again(fleet, new_job, options, seconds, alone)
    print("killed while " + ", ".join(f"{what}: {count}" for what, count in hits.most_common()))
    print(json.dumps({"benchmark": "kill_pretrain", "kills": sum(hits.values()), "runs": attempts, "identical": True}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--interval", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args()


def configure(steps: int, dtype: str) -> dict[str, Any]:
    """With a guard against spikes that has a state to lose."""
    return {
        "model": MODEL,
        "steps": steps,
        "sequence_length": 32,
        "global_batch_size": 8,
        "init_std": 0.1,
        "dtype": dtype,
        "skip_spikes": {"sigma": 2.0, "window": 16},
        "learning_rate_scheduler": {"learning_rate": 3e-3, "lr_warmup_steps": 2, "lr_decay_style": "cosine"},
    }


def kill_again_and_again(
    fleet: Fleet, new_job: Any, options: argparse.Namespace, seconds: float, alone: Job
) -> tuple[Counter[str], int]:
    """What the kills hit, and how many runs came to their end. Raises AssertionError at the first difference."""
    chance, hits, finished = random.Random(options.seed), Counter[str](), 0
    while sum(hits.values()) < options.kills:
        job = new_job(f"run{finished}")
        while sum(hits.values()) < options.kills:
            (process,) = fleet.start(job)
            process.join(chance.uniform(0.05, 0.7) * seconds)
            if process.exitcode is not None:
                break
            hits[_phase(job)] += 1
            process.kill()
            process.join()
            shutil.rmtree(job.out)
            job.out.mkdir()  # as for every attempt
        else:
            fleet.run(job)
        if process.exitcode not in (0, -9):
            fleet.run(job)  # says what went wrong
        check_same(job, alone)
        finished += 1
        print(f"run {finished}: same bytes; {sum(hits.values())} kills so far", flush=True)
        shutil.rmtree(job.scratch.parent)
    return hits, finished


def _phase(job: Job) -> str:
    """What the attempt seems to be doing, by what lies in its folders."""
    folder = CheckpointFolder(job.scratch / "checkpoints")
    if folder.aside.exists():
        return "writing a checkpoint"
    if any(job.out.iterdir()):
        return "converting"
    log = job.scratch / "rank0.log"
    return "training" if log.exists() and "step" in log.read_text() else "setting up"


def check_same(job: Job, alone: Job) -> None:
    ours, theirs = (
        {path.name: path.read_bytes() for path in one.out.rglob("*") if path.is_file()} for one in (job, alone)
    )
    assert ours.keys() == theirs.keys() and ours, f"files {sorted(ours)} instead of {sorted(theirs)}"
    for name, content in ours.items():
        assert content == theirs[name], f"{name} differs from the run left alone"
    for name in EXACT:
        assert logged(job, name) == logged(alone, name), f"{name} differs from the run left alone"


if __name__ == "__main__":
    main()
