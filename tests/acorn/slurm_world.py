"""A Slurm of one node on the loopback interface: munged, slurmctld and slurmd, all in one folder and gone afterwards.

Debian: `apt-get install slurm-wlm munge`. The daemons want root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONFIG = """
ClusterName=acorn
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits until the credential of its first start is stale, 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# No cgroups: a container may have none to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=10
OverTimeLimit=0
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def why_not() -> str:
    """Why no Slurm can be started here; empty if one can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons want root"


@contextmanager
def one_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Environment in which sbatch and its like speak to a Slurm that runs inside the block.

    Raises RuntimeError with the daemons' logs if the node does not come up.
    """
    environ = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "SLURM_CONF": str(folder / "slurm.conf")}
    _configure(folder)
    daemons = [
        _munged(folder, environ),
        subprocess.Popen(["slurmctld", "-D", "-i", "-f", environ["SLURM_CONF"]], env=environ, start_new_session=True),
        subprocess.Popen(["slurmd", "-D", "-f", environ["SLURM_CONF"]], env=environ, start_new_session=True),
    ]
    try:
        _await_node(folder, environ)
        yield environ
    finally:
        _stop(daemons, environ)


def _stop(daemons: list[subprocess.Popen[bytes]], environ: dict[str, str]) -> None:
    """End the jobs, the daemons, and the job managers that slurmd has set apart from itself."""
    subprocess.run(["scancel", "--user=root"], env=environ, timeout=30, check=False)
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in reversed(daemons):
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("SLURM_CONF") == environ["SLURM_CONF"]:
                process.kill()


def _configure(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)  # munged refuses a socket in a folder that others cannot reach
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    controller, daemon = _free_ports(2)
    text = CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, controller=controller, daemon=daemon)
    (folder / "slurm.conf").write_text(text)


def _munged(folder: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid", "log-file=munged.log")
    arguments = [f"--{name}={folder / file}" for name, _, file in (one.partition("=") for one in files)]
    command = ["munged", "--foreground", "--force", f"--seed-file={folder / 'munge.seed'}", *arguments]
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    _until(lambda: (folder / "munge.socket").exists(), 20, lambda: "munged has no socket")
    return process


def _await_node(folder: Path, environ: dict[str, str]) -> None:
    def idle() -> bool:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environ, capture_output=True, text=True, check=False)
        return done.stdout.strip() == "idle"

    def logs() -> str:
        files = ("slurmctld.log", "slurmd.log")
        return "\n".join((folder / name).read_text() for name in files if (folder / name).exists())

    _until(idle, 60, lambda: f"the node does not come up:\n{logs()}")


def _until(there: object, seconds: float, complaint: object) -> None:
    deadline = time.monotonic() + seconds
    while not there():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(complaint())  # type: ignore[operator]
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
