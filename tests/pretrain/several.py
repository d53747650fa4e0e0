"""Runs that need several processes, all forked from one that has imported torch once. Started by test_parallelism.py.

    python -m tests.pretrain.several FOLDER

Prints one JSON object: the losses of each topology, and what came of SIGTERM to one of two processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.parallelism import TOPOLOGIES, measure
from benchmarks.pretraining import MODEL, Fleet, logged, make_job, write_inputs
from pretrain.checkpoints import CheckpointFolder
from tests.pretrain.world import sigterm_at

CHOSEN = (
    "1 process",
    "1 process, recompute",
    "dp2",
    "dp2, ZeRO-1",
    "tp2, reduce-scatter, recompute",
    "pp2, 1f1b",
    "dp2 x tp2",
    "tp2 x pp2",
    "bf16, 1 process",
    "bf16, dp2, several buckets",
)
CONFIG: dict[str, Any] = {
    "model": MODEL,
    "steps": 20,
    "sequence_length": 16,
    "global_batch_size": 8,
    "init_std": 0.1,
    "learning_rate_scheduler": {"learning_rate": 3e-3, "lr_warmup_steps": 2},
}
EXECUTION: dict[str, Any] = {"device": "cpu", "log_interval": 1, "checkpoint_interval": 1000, "micro_batch_size": 2}


def stop_one_of_two(fleet: Fleet, folder: Path) -> dict[str, Any]:
    """Two data-parallel processes, of which the second gets SIGTERM at step 7; then one process goes on alone."""
    job = make_job(folder / "job", write_inputs(folder / "inputs"), CONFIG | {"skip_spikes": True}, EXECUTION)
    with sigterm_at(7, rank=1):
        ranks = fleet.start(job, 2)
    for process in ranks:
        process.join(500)
    newest, _ = CheckpointFolder(job.scratch / "checkpoints").newest()
    fleet.run(job, 1)
    return {
        "codes": [process.exitcode for process in ranks],
        "step": newest and newest.step,
        "losses": logged(job, "train/loss"),
        "tokens": logged(job, "train/tokens"),
    }


def main(folder: Path) -> None:
    fleet = Fleet("cpu", 1)
    chosen = [topology for topology in TOPOLOGIES if topology.name in CHOSEN]
    outcomes = measure(chosen, fleet, folder / "matrix", dict(CONFIG), EXECUTION)
    answer: dict[str, Any] = {outcome.topology.name: outcome.losses for outcome in outcomes}
    print(json.dumps({"losses": answer, "stopped": stop_one_of_two(fleet, folder / "stopped")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
