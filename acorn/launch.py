"""Starts the processes of one step and sees to it that none outlives us.

`python`, `torchrun` and `accelerate launch` all start the same thing: `python -m <package> --job FILE`, once per
process. A step's processes form a session of their own, so Ctrl-C reaches them through us, in order. If we are killed
outright they notice by themselves (`acorn.worker`), and the next attempt at the step waits for the last of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from acorn import forkserver
from acorn.forkserver import Forked, ForkServer, ServerGone
from acorn.stage import Launched, Stage

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIGS = CHECKOUT / "configs" / "accelerate"
GRACE_SECONDS = 5.0
"""What a step has to end by itself once it was asked to; on SIGTERM as long as its `grace_seconds` says."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: children first, then a word on how to go on."""


class StepFailed(Exception):
    """The step's processes ended with an error; what they printed says why."""


class Processes:
    """Starts the processes of one step after another; see `acorn.forkserver` for `forks`."""

    def __init__(self, home: Path, forks: bool = False) -> None:
        """`forks`: whether steps that `imports_torch` are forked from a server, which starts with the first step."""
        self._home = home
        self._forks = forks
        self._server: ForkServer | None = None

    def run(self, stage: Stage, step: str, execution: Any, description: dict[str, Any]) -> None:
        """Run a step to its end. Raises StepFailed, or KeyboardInterrupt once the children are gone."""
        job_file = self._home / "jobs" / f"{step.replace('/', '-')}-{uuid4().hex}.json"
        write_job(job_file, description)
        try:
            process = self._start(stage, execution, job_file)
            try:
                code = process.wait()
            except BaseException as reason:
                stop_group(process, grace_seconds(execution) if isinstance(reason, Terminated) else GRACE_SECONDS)
                raise
        finally:
            job_file.unlink(missing_ok=True)
        if code != 0:
            raise StepFailed(f"step '{step}' ended with exit code {code}; what it printed above says why")

    def close(self) -> None:
        if self._server is not None:
            stop_group(self._server.process, grace=0.0)
            self._server = None

    def _start(self, stage: Stage, execution: Any, job_file: Path) -> subprocess.Popen[bytes] | Forked:
        environ = environment(execution, self._home)
        if self._forks and self._server is None:
            # Asked through NVML whether there is a GPU, torch does not start CUDA, which no child would survive.
            ahead = {**environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
            self._server = ForkServer(lambda command, fds: _spawn(command, ahead, fds))
        if self._server is not None and forkable(stage, execution):
            try:
                return self._server.fork(job_file, environ)
            except ServerGone:
                self.close()  # The next step has a new one.
        return _spawn(command_line(stage, job_file, execution), environ)


def _spawn(command: list[str], environ: dict[str, str], fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own that dies with us; of our open files it keeps `fds`.

    Interrupts wait meanwhile: Python drops an exception raised in the hooks around a fork, and Ctrl-C would be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        hook = partial(_in_child, os.getpid(), before)
        process = subprocess.Popen(command, env=environ, start_new_session=True, preexec_fn=hook, pass_fds=fds)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # raises what has waited
        except BaseException:
            stop_group(process)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _in_child(parent: int, mask: set[signal.Signals | int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    kill_when_parent_dies(parent)


def kill_when_parent_dies(parent: int) -> None:
    """Ask Linux to kill this process when `parent` dies (PR_SET_PDEATHSIG = 1); it survives exec, not fork.

    The kernel tells only of a death that is still to come: if `parent` was killed between the fork and this call, the
    process ends itself. A worker that waits for its job would otherwise wait for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def grace_seconds(execution: Any) -> float:
    """Seconds that the step may take over its last checkpoint when a scheduler's SIGTERM ends the run."""
    return float(getattr(execution, "grace_seconds", GRACE_SECONDS))


def stop_group(process: subprocess.Popen[bytes] | Forked, grace: float = GRACE_SECONDS) -> None:
    """SIGTERM to the step's session, SIGKILL to what is left after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if _ends_within(seconds, process):
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ends_within(seconds: float, process: subprocess.Popen[bytes] | Forked) -> bool:
    """Wait for it. Ctrl-C ends our patience; another SIGTERM does not: schedulers send it to every process, twice."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
            return True
        except subprocess.TimeoutExpired:
            return False
        except Terminated:
            continue
        except KeyboardInterrupt:
            return False


def command_line(stage: Stage, job_file: Path, execution: Any) -> list[str]:
    """The command that starts every process of the step on this node."""
    target = ["-m", stage.package, "--job", str(job_file)]
    if not needs_launcher(stage, execution):
        return [sys.executable, *target]
    if stage.launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *_torchrun_arguments(execution), *target]
    return [sys.executable, "-m", "accelerate.commands.launch", *_accelerate_arguments(execution), *target]


def needs_launcher(stage: Stage, execution: Any) -> bool:
    """One process needs none: `torchrun` and `accelerate launch` would import torch for 4 s, then start the same."""
    many = process_count(execution) * getattr(execution, "nodes", 1) > 1
    return stage.launcher != "python" and (many or (stage.launcher == "accelerate" and bool(execution.accelerate)))


def forkable(stage: Stage, execution: Any) -> bool:
    """Whether a run with several such steps forks them from a server."""
    return forkserver.available and stage.imports_torch and not needs_launcher(stage, execution)


def process_count(execution: Any) -> int:
    """Processes on this node: as asked for, else one per GPU, else 1. A stage without the field always has one."""
    if not hasattr(execution, "processes"):
        return 1
    asked = execution.processes
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
    except (OSError, subprocess.TimeoutExpired):  # no driver, or one that hangs
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


def environment(execution: Any, home: Path) -> dict[str, str]:
    """Environment of the step's processes: threads shared out, libraries told not to look around or phone home."""
    threads = max(1, available_cores() // process_count(execution))
    environ = {
        "OMP_NUM_THREADS": str(threads),
        # How long a thread waits awake for its fellows; libgomp's 300,000 turns steal the core from them where others
        # work too. Sampling from a 1M model on 2 busy cores: 17 s instead of 70 s; on idle ones 2.3 s instead of 2.1 s.
        "GOMP_SPINCOUNT": "10000",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # nanotron's tensor parallelism asserts it
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # four bars per training step; the trainer's own says enough
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",  # between libraries, not for our user
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # an artifact's bytes must not depend on the locale
        "WANDB_DIR": str(home),
        **own_modules(os.environ),
    }
    if not sys.stderr.isatty():
        environ.setdefault("TQDM_MININTERVAL", "15")  # seconds: a log file wants a line now and then
    if execution.device == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    elif (
        getattr(execution, "processes", None) == 1
        and not getattr(execution, "model_parallel", False)
        and gpu_count() > 1
    ):  # else Trainer wraps it in nn.DataParallel
        environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environ


def own_modules(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with which `python -m eval` runs acorn's package, not an `eval.py` that lies in the current folder."""
    path = [str(CHECKOUT)] if (CHECKOUT / "pyproject.toml").exists() else []
    path += [environ["PYTHONPATH"]] if environ.get("PYTHONPATH") else []
    own = {"PYTHONPATH": os.pathsep.join(path)} if path else {}
    return {**environ, **own, "PYTHONSAFEPATH": "1"}


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torchrun_arguments(execution: Launched) -> list[str]:
    arguments = ["--nproc-per-node", str(process_count(execution))]
    arguments += ["--shutdown-timeout", str(math.ceil(grace_seconds(execution)))]
    if execution.nodes == 1:
        return [*arguments, "--standalone"]
    return [
        *arguments,
        *("--nnodes", str(execution.nodes), "--node-rank", str(execution.node_rank)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", str(execution.rendezvous)),
    ]


def _accelerate_arguments(execution: Launched) -> list[str]:
    count = process_count(execution)
    total = count * execution.nodes
    arguments = ["--config_file", str(accelerate_config(execution)), "--num_processes", str(total)]
    if execution.nodes == 1:
        return [*arguments, "--main_process_port", "0"] if total > 1 else arguments
    host, _, port = str(execution.rendezvous).rpartition(":")
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


def write_job(path: Path, description: dict[str, Any]) -> Path:
    """Job file for the workers, replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
    aside.replace(path)
    return path


def now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
