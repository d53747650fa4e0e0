"""`acorn slurm`: a recipe's steps as sbatch files, one job a step, and a script that submits them in order.

A job runs the same `acorn run RECIPE --only STEP` as a person would, one task a node; the step's own launcher starts
the processes of a node. It may be preempted, requeued and killed at any moment: the same command goes on from the
step's checkpoints. Ahead of its time limit, early enough for a last checkpoint, it stops the step itself and asks to be
queued again.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acorn.launch import StepFailed, grace_seconds
from acorn.recipe import Recipe, Step

LEAST_NOTICE = 120
"""Seconds between the warning and the time limit, at least; Slurm may warn up to 60 s earlier (sbatch's --signal)."""
BEYOND_GRACE = 60
"""Seconds of it that are left when the step's own `grace_seconds` are over."""
FIRST_PORT, PORTS = 20_000, 20_000
"""The rendezvous port follows from the job's number, so that two jobs on one node do not meet."""


@dataclass(frozen=True)
class Wishes:
    """What the command asked for beyond the recipe."""

    nodes: int | None = None
    """For the steps that a launcher starts; default: their own execution.nodes."""
    gpus: int | None = None
    """Per node; default: as a step's own execution says, see `gpus_of`."""
    options: Sequence[str] = ()
    """More sbatch options, as `--partition=gpu`, for every job."""
    repeated: Sequence[str] = ()
    """Arguments of the command that every job repeats: `--set`, `--depth`, `--flops`."""

    def __post_init__(self) -> None:
        for name, value, least in (("nodes", self.nodes, 1), ("gpus", self.gpus, 0)):
            if value is not None and value < least:
                raise StepFailed(f"--{name} {value}: at least {least}")
        for option in self.options:
            if not option.startswith("-") or "\n" in option:
                raise StepFailed(f"--sbatch {option!r}: give an option of sbatch, as --sbatch=--partition=gpu")


def write_jobs(recipe: Recipe, names: Sequence[str], wishes: Wishes, folder: Path) -> list[Path]:
    """Write `<step>.sbatch` for each step and `submit.sh` into `folder`; their paths, `submit.sh` last.

    They are to be submitted from the folder that `recipe.path` is seen from. Raises StepFailed, with nothing written,
    for a step of which nobody says how many GPUs it wants.
    """
    texts = {f"{name}.sbatch": job(recipe, recipe.steps[name], wishes) for name in names}
    texts["submit.sh"] = submission(recipe, names)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    (folder / "submit.sh").chmod(0o755)
    return [folder / file for file in texts]


def job(recipe: Recipe, step: Step, wishes: Wishes) -> str:
    """The sbatch file of one step."""
    nodes = nodes_of(step, wishes)
    lines = [
        "#!/bin/bash",
        f"# Step '{step.name}' of {recipe.path}, written by `acorn slurm`: write it anew, do not edit.",
    ]
    lines += [f"#SBATCH {option}" for option in _options(recipe, step, nodes, wishes)]
    lines += ["set -uo pipefail", ""]
    if nodes > 1:
        lines += [
            "# The nodes meet at the first of them.",
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f'export ACORN_RENDEZVOUS="$head:$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"',
            "",
        ]
    return "\n".join([*lines, *_STOPPING, *_command(recipe, step, nodes, wishes), *_WAITING, ""])


def submission(recipe: Recipe, names: Sequence[str]) -> str:
    """A script that submits the jobs, each after those it needs; it prints the number of each."""
    lines = [
        "#!/bin/bash",
        f"# Submits the steps of {recipe.path} in order. Run it from where the recipe's path is seen.",
    ]
    lines += ["set -euo pipefail", 'here=$(cd "$(dirname "$0")" && pwd)']
    lines += ["submit() { sbatch --parsable --kill-on-invalid-dep=yes \"$@\" | cut -d ';' -f 1; }", ""]
    numbers = {name: f"job{index}" for index, name in enumerate(names)}
    for name, variable in numbers.items():
        needed = [f"${numbers[one]}" for one in names if one in _nearest(recipe, name, set(names))]
        after = f"--dependency=afterok:{':'.join(needed)} " if needed else ""
        lines.append(f'{variable}=$(submit {after}"$here"/{shlex.quote(name)}.sbatch)')
        lines.append(f'echo {shlex.quote(name)} "${variable}"')
    return "\n".join([*lines, ""])


def nodes_of(step: Step, wishes: Wishes) -> int:
    if step.stage.launcher == "python":
        return 1
    return wishes.nodes if wishes.nodes is not None else int(getattr(step.execution, "nodes", 1))


def notice_of(step: Step) -> int:
    """Seconds before the time limit at which the job is told of it."""
    return max(LEAST_NOTICE, math.ceil(grace_seconds(step.execution)) + BEYOND_GRACE)


def gpus_of(step: Step, wishes: Wishes) -> int:
    """GPUs per node: as asked for, else one a process; at least one for `device: cuda`, none for `cpu`, and at most one
    where a stage has a single process.

    Raises StepFailed for a launched step with `device: auto` that leaves it to the GPUs present, of which Slurm gives
    none to a job that does not ask: it would train on the CPU.
    """
    if step.execution.device == "cpu" or not step.stage.imports_torch:
        return 0
    wanted = wishes.gpus if wishes.gpus is not None else getattr(step.execution, "processes", None)
    launched = step.stage.launcher != "python"
    if step.execution.device == "cuda":
        wanted = max(1, wanted or 0)
    elif wanted is None and launched:
        raise StepFailed(
            f"step '{step.name}' takes the GPUs present, and Slurm has to be told how many: give --gpus N (a node; 0 "
            f"for none), or --set {step.name}.processes=N, or --set {step.name}.device=cpu"
        )
    return int(wanted or 0) if launched else min(int(wanted or 0), 1)


def _options(recipe: Recipe, step: Step, nodes: int, wishes: Wishes) -> list[str]:
    gpus = gpus_of(step, wishes)
    return [
        f"--job-name={recipe.name}-{step.name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        "--output=%x-%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{notice_of(step)}",
        *wishes.options,
    ]


def _command(recipe: Recipe, step: Step, nodes: int, wishes: Wishes) -> list[str]:
    words = [*("run", str(recipe.path), "--only", step.name), *wishes.repeated]
    settings = []
    if nodes > 1:
        settings = [f"nodes={nodes}", "node_rank=$SLURM_NODEID", "rendezvous=$ACORN_RENDEZVOUS"]
    elif getattr(step.execution, "nodes", 1) > 1:
        settings = ["nodes=1"]
    line = " ".join(["exec", "${ACORN:-acorn}", *map(shlex.quote, words)])
    line += "".join(f' --set "{step.name}.{setting}"' for setting in settings)
    return [f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(line)} &"]


_STOPPING = (
    "step=  # the process number of srun, once it runs",
    "stop() {",
    "    trap '' TERM",
    '    state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")',
    '    if [ "$state" = RUNNING ]; then  # the time limit is near: stop the step and queue again',
    '        scancel --signal=TERM "$SLURM_JOB_ID"  # its steps, not this script',
    '        [ -z "$step" ] || wait "$step"',
    '        scontrol requeue "$SLURM_JOB_ID"',
    "    else  # preempted, requeued or cancelled: Slurm itself stops the step, and knows what comes next",
    '        [ -z "$step" ] || wait "$step"',
    "    fi",
    "    exit 143",
    "}",
    "trap stop TERM",
    "",
)
_WAITING = ("step=$!", 'wait "$step"')


def _nearest(recipe: Recipe, name: str, chosen: set[str]) -> set[str]:
    """The chosen steps that `name` needs, through steps that are not chosen, too."""
    found: set[str] = set()
    for source in recipe.upstream(name):
        found |= {source} if source in chosen else _nearest(recipe, source, chosen)
    return found
