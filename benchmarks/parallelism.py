"""Whether every way to spread pre-training over processes trains the same: losses of each topology against one process.

    python -m benchmarks.parallelism [--device cuda] [--hidden 576 --layers 30 ...] [--only dp2 tp2]

All runs start from the same weights (they depend on the seed alone) and see the same data. The table shows the largest
difference of a loss over the steps, of a final weight, and tokens/s over all processes; on a CPU the processes share
its cores, so the last column says something on GPUs only. Topologies that need more processes than there are GPUs are
named and left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from acorn.launch import available_cores, gpu_count
from acorn.stage import Job
from benchmarks.pretraining import MODEL, VOCABULARY, Fleet, logged, make_job, write_inputs

TOLERANCE = 1e-5
BUCKET_MB = 0.01
"""Small enough for the toy model to have a dozen."""


@dataclass(frozen=True)
class Topology:
    name: str
    processes: int
    execution: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    against: str = "1 process"
    bucket_mb: float | None = None


BFLOAT16 = {"dtype": "bfloat16"}
SCATTER = {"tp": 2, "tp_mode": "REDUCE_SCATTER"}
TOPOLOGIES = (
    Topology("1 process", 1),
    Topology("1 process, recompute", 1, {"recompute": True}),
    Topology("1 process, no accumulation", 1, {"micro_batch_size": 8}),
    Topology("dp2", 2),
    Topology("dp2, several buckets", 2, bucket_mb=BUCKET_MB),
    Topology("dp2, ZeRO-1", 2, {"zero_stage": 1}),
    Topology("dp2, recompute", 2, {"recompute": True}),
    Topology("tp2", 2, {"parallelism": {"tp": 2}}),
    Topology("tp2, reduce-scatter", 2, {"parallelism": SCATTER}),
    Topology("tp2, reduce-scatter, recompute", 2, {"parallelism": SCATTER, "recompute": True}),
    Topology("pp2, afab", 2, {"parallelism": {"pp": 2, "pp_engine": "afab"}}),
    Topology("pp2, 1f1b", 2, {"parallelism": {"pp": 2, "pp_engine": "1f1b"}}),
    Topology("pp2, 1f1b, recompute", 2, {"parallelism": {"pp": 2, "pp_engine": "1f1b"}, "recompute": True}),
    Topology("dp2 x tp2", 4, {"parallelism": {"tp": 2}}),
    Topology("dp2 x tp2, ZeRO-1", 4, {"parallelism": {"tp": 2}, "zero_stage": 1}),
    Topology("dp2 x pp2", 4, {"parallelism": {"pp": 2, "pp_engine": "1f1b"}}),
    Topology("tp2 x pp2", 4, {"parallelism": {"pp": 2, "pp_engine": "1f1b", **SCATTER}}),
    Topology("bf16, 1 process", 1, {}, BFLOAT16, "bf16, 1 process"),
    Topology("bf16, dp2", 2, {}, BFLOAT16, "bf16, 1 process"),
    Topology("bf16, dp2, several buckets", 2, {}, BFLOAT16, "bf16, 1 process", BUCKET_MB),
    Topology("bf16, dp2, ZeRO-1", 2, {"zero_stage": 1}, BFLOAT16, "bf16, 1 process"),
)


@dataclass(frozen=True)
class Outcome:
    """One topology's run beside the one it must equal."""

    topology: Topology
    losses: list[float]
    loss_difference: float
    weight_difference: float
    tokens_per_second: float


def measure(
    chosen: list[Topology], fleet: Fleet, folder: Path, config: dict[str, Any], execution: dict[str, Any]
) -> list[Outcome]:
    """Run `chosen`, of which one that others are held against must come first."""
    inputs = write_inputs(folder, config.pop("vocab_size", VOCABULARY))
    jobs: dict[str, Job] = {}
    outcomes = []
    for topology in chosen:
        own = {**execution, **topology.execution}
        job = make_job(folder / topology.name.replace(" ", "-"), inputs, {**config, **topology.config}, own)
        fleet.run(job, topology.processes, topology.bucket_mb)
        jobs[topology.name] = job
        outcomes.append(_compare(topology, job, jobs[topology.against]))
    return outcomes


def _compare(topology: Topology, job: Job, reference: Job) -> Outcome:
    losses, expected = logged(job, "train/loss"), logged(reference, "train/loss")
    weights, others = (load_file(one.out / "model.safetensors") for one in (job, reference))
    speeds = logged(job, "train/tokens_per_second")
    return Outcome(
        topology,
        losses,
        max(abs(a - b) for a, b in zip(losses, expected, strict=True)),
        max(float((weights[name].float() - others[name].float()).abs().max()) for name in weights),
        statistics.median(speeds[len(speeds) // 2 :]),
    )


def main() -> None:
    options = parse()
    chosen = [t for t in TOPOLOGIES if not options.only or t.name in (*options.only, "1 process", "bf16, 1 process")]
    room = gpu_count() if options.device == "cuda" else 4
    for topology in chosen:
        if topology.processes > room:
            print(f"left out: {topology.name} needs {topology.processes} GPUs, there are {room}")
    chosen = [topology for topology in chosen if topology.processes <= room]
    config: dict[str, Any] = {
        "model": {**MODEL, "hidden_size": options.hidden, "intermediate_size": options.inner,
                  "num_hidden_layers": options.layers, "num_attention_heads": options.heads,
                  "num_key_value_heads": options.kv_heads},
        "vocab_size": options.vocab, "steps": options.steps, "sequence_length": options.sequence,
        "global_batch_size": options.batch, "init_std": 0.1,
        "learning_rate_scheduler": {"learning_rate": 3e-3, "lr_warmup_steps": 2, "lr_decay_style": "cosine"},
    }  # fmt: skip
    execution = {"device": options.device, "log_interval": 1, "checkpoint_interval": 10**6, "micro_batch_size": 2}
    fleet = Fleet(options.device, 1 if options.device == "cuda" else max(1, available_cores() // 4))
    with tempfile.TemporaryDirectory() as name:
        report(measure(chosen, fleet, Path(name), config, execution), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "hidden": 32, "inner": 64, "layers": 2, "heads": 4, "kv-heads": 2, "vocab": VOCABULARY, "sequence": 32,
        "batch": 8, "steps": 20,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    names = [topology.name for topology in TOPOLOGIES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    return parser.parse_args()


def report(outcomes: list[Outcome], options: argparse.Namespace) -> None:
    print(f"\n{options.device}, {options.steps} steps; losses fall from {outcomes[0].losses[0]:.3f} to "
          f"{outcomes[0].losses[-1]:.3f}")  # fmt: skip
    print(f"{'topology':32} {'processes':>9} {'loss difference':>16} {'weight difference':>18} {'tokens/s':>10}")
    for one in outcomes:
        print(f"{one.topology.name:32} {one.topology.processes:9} {one.loss_difference:16.1e} "
              f"{one.weight_difference:18.1e} {one.tokens_per_second:10,.0f}")  # fmt: skip
    worst = max(one.loss_difference for one in outcomes)
    figures = {"benchmark": "parallelism", "device": options.device, "topologies": len(outcomes)}
    verdict = {"max_loss_difference": worst, "within_1e-5": worst <= TOLERANCE}
    print(
        json.dumps({**figures, **verdict, "loss_differences": {o.topology.name: o.loss_difference for o in outcomes}})
    )


if __name__ == "__main__":
    main()
