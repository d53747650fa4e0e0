"""Starts the processes of one step and sees to it that none outlives us.

`python`, `torchrun` and `accelerate launch` all start the same thing: `python -m <package> --job FILE`, once per
process. A step's processes form a session of their own, so Ctrl-C reaches them through us, in order; if we are killed
outright they notice by themselves (`acorn.worker`), and the registry's lock, whose descriptor they share, is not free
until the launcher is gone too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from acorn.stage import Launched, Stage

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "accelerate"
GRACE_SECONDS = 5.0


class StepFailed(Exception):
    """The step's processes ended with an error; what they printed says why."""


def launch(stage: Stage, job_file: Path, execution: Any, lock_fd: int | None = None) -> None:
    """Run the step and wait for it. Raises StepFailed, or KeyboardInterrupt once the children are gone."""
    command = command_line(stage, job_file, execution)
    process = subprocess.Popen(
        command,
        env=environment(execution, job_file),
        start_new_session=True,
        preexec_fn=kill_when_parent_dies,
        pass_fds=() if lock_fd is None else (lock_fd,),
    )
    try:
        code = process.wait()
    except BaseException:
        stop_group(process)
        raise
    if code != 0:
        raise StepFailed(f"{stage.name}: `{' '.join(command)}` ended with exit code {code}")


def kill_when_parent_dies() -> None:
    """Ask Linux to kill this process when its parent dies (PR_SET_PDEATHSIG = 1); it survives exec, not fork."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)


def stop_group(process: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """SIGTERM to the step's session, SIGKILL to what is left after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def command_line(stage: Stage, job_file: Path, execution: Any) -> list[str]:
    """The command that starts every process of the step on this node."""
    target = ["-m", stage.package, "--job", str(job_file)]
    # One process needs no launcher: both would import torch for about 4 s and then start the same command.
    many = process_count(execution) * getattr(execution, "nodes", 1) > 1
    if stage.launcher == "torchrun" and many:
        return [sys.executable, "-m", "torch.distributed.run", *_torchrun_arguments(execution), *target]
    if stage.launcher == "accelerate" and (many or execution.accelerate):
        return [sys.executable, "-m", "accelerate.commands.launch", *_accelerate_arguments(execution), *target]
    return [sys.executable, *target]


def process_count(execution: Any) -> int:
    """Processes on this node: as asked for, else one per GPU, else 1."""
    asked = getattr(execution, "processes", None)
    if asked is not None:
        return int(asked)
    return 1 if execution.device == "cpu" else max(1, gpu_count())


@cache
def gpu_count() -> int:
    """CUDA devices visible to this process, asked of the driver so that the spine need not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


def environment(execution: Any, job_file: Path) -> dict[str, str]:
    """Environment of the step's processes: threads shared out, libraries told not to look around or phone home."""
    threads = max(1, available_cores() // process_count(execution))
    environ = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # nanotron's tensor parallelism asserts it
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # four bars per training step; the trainer's own says enough
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",  # between libraries, not for our user
        "PYTHONUNBUFFERED": "1",
        "WANDB_DIR": str(job_file.resolve().parents[3]),  # $ACORN_HOME, for staging/<key>/scratch/ does not last
        **os.environ,
    }
    if not sys.stderr.isatty():
        environ.setdefault("TQDM_MININTERVAL", "15")  # seconds: a log file wants a line now and then
    if execution.device == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    elif process_count(execution) == 1 and gpu_count() > 1:  # else transformers wraps the model in nn.DataParallel
        environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environ


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torchrun_arguments(execution: Launched) -> list[str]:
    arguments = ["--nproc-per-node", str(process_count(execution))]
    if execution.nodes == 1:
        return [*arguments, "--standalone"]
    return [
        *arguments,
        *("--nnodes", str(execution.nodes), "--node-rank", str(execution.node_rank)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", _rendezvous(execution)),
    ]


def _accelerate_arguments(execution: Launched) -> list[str]:
    count = process_count(execution)
    total = count * execution.nodes
    arguments = ["--config_file", str(accelerate_config(execution)), "--num_processes", str(total)]
    if execution.nodes == 1:
        return [*arguments, "--main_process_port", "0"] if total > 1 else arguments
    host, _, port = _rendezvous(execution).rpartition(":")
    return [
        *arguments,
        *("--num_machines", str(execution.nodes), "--machine_rank", str(execution.node_rank)),
        *("--main_process_ip", host, "--main_process_port", port),
    ]


def accelerate_config(execution: Launched) -> Path:
    """The accelerate config file: the one asked for (a path, or a name under configs/accelerate), else by device."""
    if execution.accelerate:
        given = Path(execution.accelerate)
        path = given if given.suffix else CONFIGS / f"{given}.yaml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
            raise FileNotFoundError(f"execution.accelerate: no file {path}; shipped ones: {known}")
        return path
    gpu = execution.device != "cpu" and gpu_count() > 0
    if not gpu:
        return CONFIGS / "cpu-ddp.yaml"
    return CONFIGS / ("ddp.yaml" if execution.nodes == 1 else "multi-node-ddp.yaml")


def _rendezvous(execution: Launched) -> str:
    if not execution.rendezvous:
        raise ValueError(f"execution.rendezvous: nodes={execution.nodes} needs host:port of node 0")
    return execution.rendezvous


def write_job(path: Path, description: dict[str, Any]) -> Path:
    """Job file for the workers, replaced in one step."""
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(description, indent=1, ensure_ascii=False))
    aside.replace(path)
    return path


def now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
