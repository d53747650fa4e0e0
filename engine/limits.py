"""What this process may take: memory and cores, as the kernel, its control groups and the GPU's driver have it.

A container sees all the memory of its machine in /proc/meminfo, and is killed at its group's limit. So the groups that
this process is in are asked, version 1 and 2, and every group above them: the tightest counts. Usage is counted without
the file cache that the kernel drops first (`inactive_file`, as container runtimes do it), and with neither swap nor
what may be swapped out: a server that swaps is a server that hangs.

Nothing of torch is imported, and every function takes the root of the file system, so that tests can make one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

ENDLESS = 1 << 60
"""Limits from here on are none: version 1 writes the largest multiple of a page below 2^63."""


@dataclass(frozen=True)
class Memory:
    """Of one kind."""

    free: int
    """Bytes that this process may still take."""
    total: int
    """Bytes, whoever has them."""
    what: str
    """For people: "RAM", "the memory cgroup /jobs/7", "the memory of GPU 0"."""


def ram(root: Path = Path("/")) -> Memory:
    """The tightest of the machine's RAM and the limits of this process's control groups."""
    return min([_machine(root), *_groups(root)], key=lambda memory: memory.free)


def cores(root: Path = Path("/")) -> tuple[int, str]:
    """Cores that this process may use, at least 1, and what says so: its affinity, or a control group's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    source = f"the {found} cores of this process" if found > 1 else "the one core of this process"
    for version, path, name in _levels(root, "cpu"):
        quota = _quota(path, version)
        if quota is not None and max(1, int(quota)) < found:
            found, source = max(1, int(quota)), f"the quota of {quota:g} cores of the cgroup {name}"
    return found, source


def default_threads() -> int:
    """Threads for a computation: OMP_NUM_THREADS where it is set, else the cores that this process may use."""
    if given := os.environ.get("OMP_NUM_THREADS"):
        return max(1, int(given.split(",")[0]))
    return cores()[0]


def vram() -> Memory | None:
    """Of the first visible GPU, asked of the driver; RAM's for one that has no memory of its own; None without one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first in ("", "-1"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.free,memory.total,name", "--format=csv,noheader,nounits", "-i", first]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no driver, or one that hangs
        return None
    if answer.returncode != 0 or not answer.stdout.strip():
        return None
    free, total, name = (part.strip() for part in answer.stdout.splitlines()[0].split(",", 2))
    if not (free.isdigit() and total.isdigit()):  # "[N/A]"
        shared = ram()
        return Memory(shared.free, shared.total, f"{shared.what}, shared with GPU {first} ({name})")
    return Memory(int(free) << 20, int(total) << 20, f"the memory of GPU {first} ({name})")


def _machine(root: Path) -> Memory:
    file = root / "proc/meminfo"
    if not file.exists():  # no Linux
        memory = psutil.virtual_memory()
        return Memory(int(memory.available), int(memory.total), "RAM")
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    free, total = (int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    return Memory(free, total, "RAM")


def _groups(root: Path) -> Iterator[Memory]:
    """Every group with a limit."""
    for version, path, name in _levels(root, "memory"):
        limits = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        found = [limit for each in limits if (limit := _number(path / each)) is not None]
        usage = _number(path / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        if found and min(found) < ENDLESS and usage is not None:
            cache = _statistic(path / "memory.stat", "inactive_file" if version == 2 else "total_inactive_file")
            yield Memory(max(0, min(found) - max(0, usage - cache)), min(found), f"the memory cgroup {name}")


def _levels(root: Path, controller: str) -> Iterator[tuple[int, Path, str]]:
    """(version, folder, name) of this process's group under `controller` and of those above it, in both hierarchies."""
    own = _own_groups(root)
    for version, top, mounted in _mounts(root, controller):
        # What is mounted may be a group itself (a container's), and then shows as the top.
        group = own.get(controller if version == 1 else "")
        if group is None:
            continue
        inside = PurePosixPath(group)
        inside = inside.relative_to(mounted) if inside.is_relative_to(mounted) else PurePosixPath(".")
        for level in (inside, *inside.parents):
            if ".." not in level.parts and (root / top.relative_to("/") / level).is_dir():
                yield version, root / top.relative_to("/") / level, "/" if str(level) == "." else f"/{level}"


def _own_groups(root: Path) -> dict[str, str]:
    """controller -> group; "" is version 2's, which has one group for all."""
    file = root / "proc/self/cgroup"
    groups: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        number, controllers, group = line.split(":", 2)
        names = controllers.split(",") if controllers else [""] if number == "0" else []
        groups |= dict.fromkeys(names, group)
    return groups


def _mounts(root: Path, controller: str) -> Iterator[tuple[int, Path, PurePosixPath]]:
    """(version, mount point, the group that is mounted there) of the hierarchies that have `controller`."""
    file = root / "proc/self/mountinfo"
    for line in file.read_text().splitlines() if file.exists() else ():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" ", 2), "", ""][:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            mounted, point = before.split(" ")[3:5]
            yield 2 if kind == "cgroup2" else 1, Path(point.replace("\\040", " ")), PurePosixPath(mounted)


def _quota(path: Path, version: int) -> float | None:
    """Cores' worth of time that a group may use; None for no limit."""
    if version == 2:
        file = path / "cpu.max"
        quota, _, period = file.read_text().strip().partition(" ") if file.exists() else ("max", "", "")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    limit, length = _number(path / "cpu.cfs_quota_us"), _number(path / "cpu.cfs_period_us")
    return None if limit is None or limit <= 0 or not length else limit / length


def _number(file: Path) -> int | None:
    """None for a file that is not there, and for "max"."""
    text = file.read_text().strip() if file.exists() else "max"
    return None if text == "max" else int(text)


def _statistic(file: Path, name: str) -> int:
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
