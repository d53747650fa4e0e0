"""Memory and cores, read from made-up file systems: control groups of both versions, nested, with and without limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.limits import cores, ram, vram

GB = 1 << 30
NONE_V1 = "9223372036854771712"


def make_root(root: Path, cgroup: str, mounts: list[str], available: int = 20 * GB) -> Path:
    """A root with /proc: `mounts` are lines of mountinfo from the mounted group on."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {24 * GB >> 10} kB\nMemAvailable: {available >> 10} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("".join(f"{31 + n} 23 0:{n} {line}\n" for n, line in enumerate(mounts)))
    return root


def group(folder: Path, **files: object) -> None:
    """A control group; `__` in a name stands for its dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


V1 = "/ /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_CPU = "/ /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V2 = "/ /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    root = make_root(tmp_path, "4:memory:/\n0::/\n", [V1, "/ /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"])
    group(root / "sys/fs/cgroup/memory", memory__limit_in_bytes=NONE_V1, memory__usage_in_bytes=GB)
    group(root / "sys/fs/cgroup/unified")
    assert (ram(root).free, ram(root).total, ram(root).what) == (20 * GB, 24 * GB, "RAM")


def test_a_machine_without_control_groups_counts_itself(tmp_path: Path) -> None:
    assert ram(make_root(tmp_path, "", [])).free == 20 * GB


def test_a_limit_of_version_1_counts_without_the_file_cache(tmp_path: Path) -> None:
    root = make_root(tmp_path, "4:memory:/job\n1:cpu:/\n", [V1])
    stat = f"inactive_file 0\ntotal_inactive_file {GB // 2}\n"
    files = {"memory__limit_in_bytes": 2 * GB, "memory__usage_in_bytes": GB, "memory__stat": stat}
    group(root / "sys/fs/cgroup/memory/job", **files)
    found = ram(root)
    assert (found.free, found.total, found.what) == (3 * GB // 2, 2 * GB, "the memory cgroup /job")


def test_a_limit_of_version_2_counts(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/user.slice/a.service\n", [V2])
    limits = {
        "memory__max": 2 * GB,
        "memory__high": "max",
        "memory__current": GB,
        "memory__stat": f"inactive_file {GB}",
    }
    group(root / "sys/fs/cgroup/user.slice/a.service", **limits)
    assert (ram(root).free, ram(root).what) == (2 * GB, "the memory cgroup /user.slice/a.service")


def test_of_nested_groups_the_tightest_counts(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/a/b/c\n", [V2])
    top = root / "sys/fs/cgroup"
    group(top / "a", memory__max=4 * GB, memory__current=7 * GB // 2)
    group(top / "a/b", memory__max="max", memory__current=GB)
    group(top / "a/b/c", memory__max=3 * GB, memory__current=GB)
    assert (ram(root).free, ram(root).what) == (GB // 2, "the memory cgroup /a")


def test_a_throttling_limit_counts_as_one(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/a\n", [V2])
    group(root / "sys/fs/cgroup/a", memory__max=4 * GB, memory__high=2 * GB, memory__current=GB)
    assert ram(root).free == GB


def test_the_machine_counts_where_it_has_less_than_the_group(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/a\n", [V2], available=GB)
    group(root / "sys/fs/cgroup/a", memory__max=4 * GB, memory__current=0)
    assert ram(root).what == "RAM"


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/a\n", [V2])
    group(root / "sys/fs/cgroup/a", memory__max=GB, memory__current=2 * GB)
    assert ram(root).free == 0


@pytest.mark.parametrize("seen", ["/docker/abc", "/", "/../.."])
def test_in_a_container_its_own_group_is_at_the_mount(tmp_path: Path, seen: str) -> None:
    """Docker without a cgroup namespace shows the whole path; with one, the top, or a path out of it."""
    root = make_root(tmp_path, f"4:memory:{seen}\n", [V1.replace("/ ", "/docker/abc ", 1)])
    group(root / "sys/fs/cgroup/memory", memory__limit_in_bytes=2 * GB, memory__usage_in_bytes=GB)
    assert (ram(root).free, ram(root).what) == (GB, "the memory cgroup /")


def test_cores_follow_the_quota_of_either_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    two = make_root(tmp_path / "2", "0::/a/b\n", [V2])
    group(two / "sys/fs/cgroup/a", cpu__max="350000 100000")
    group(two / "sys/fs/cgroup/a/b", cpu__max="max 100000")
    assert cores(two) == (3, "the quota of 3.5 cores of the cgroup /a")
    one = make_root(tmp_path / "1", "2:cpu,cpuacct:/job\n", [V1_CPU])
    group(one / "sys/fs/cgroup/cpu,cpuacct/job", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert cores(one)[0] == 1
    group(one / "sys/fs/cgroup/cpu,cpuacct/job", cpu__cfs_quota_us=-1)
    assert cores(one) == (8, "the 8 cores of this process")


def test_a_gpu_has_its_own_memory_or_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert vram() is None
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '1024, 2048, Some GPU'\n")
    driver.chmod(0o755)
    own = vram()
    assert own is not None and (own.free, own.total, own.what) == (GB, 2 * GB, "the memory of GPU 0 (Some GPU)")
    driver.write_text("#!/bin/sh\necho '[N/A], [N/A], Small GPU'\n")
    shared = vram()
    assert shared is not None and shared.total == ram().total and "shared with GPU 0 (Small GPU)" in shared.what
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert vram() is None
