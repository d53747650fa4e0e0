"""A full disk, on a real file system of one megabyte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import DiskFull, Registry
from tests.disks import small_disk_at
from tests.registry.world import fill, make, spec


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk_at(tmp_path / "disk", "1m") as folder:
        yield folder


def fill_up(folder: Path) -> Path:
    """Leave not one free block."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (4096, 1):
                while file.write(b"x" * size):
                    pass
    except OSError:
        pass
    return filler


def test_a_disk_that_fills_up_while_the_stage_writes_is_a_clear_error(small_disk: Path) -> None:
    registry = Registry(small_disk / "home")
    with (
        pytest.raises(DiskFull, match=r"no space left under .*/staging/.* 0\.0 MB free"),
        registry.build(spec("a")) as build,
    ):
        fill(build, {"big": b"x" * (2 << 20)})
    assert registry.keys() == registry.verify() == []
    assert make(registry, "a", files={"small": b"x"}).digest
    assert registry.verify() == []


def test_a_disk_that_is_full_at_publication_publishes_nothing_and_a_retry_succeeds(small_disk: Path) -> None:
    registry = Registry(small_disk / "home")
    with registry.build(spec("a")) as build:
        fill(build)
        filler = fill_up(small_disk)
        with pytest.raises(DiskFull, match=str(small_disk)):
            build.publish()
        assert registry.keys() == registry.verify() == []
        filler.unlink()
        made = build.publish()
    assert registry.find(made.key) == made
    assert registry.verify() == [] and list(registry.staging_folder.iterdir()) == []


def test_a_full_disk_stops_tagging_but_not_reading(small_disk: Path) -> None:
    registry = Registry(small_disk / "home")
    made = make(registry, "a")
    registry.tag("old", made.key)
    for file in registry.home.glob("index.sqlite*"):
        file.unlink()
    fill_up(small_disk)
    fresh = Registry(registry.home)
    assert fresh.get("old") == made
    with pytest.raises(DiskFull):
        fresh.tag("old" + "r" * 50, made.key)
    assert fresh.refs() == {"old": made.key}
    assert [path.name for path in fresh.refs_folder.iterdir()] == ["old.json"]


def test_a_pull_onto_a_full_disk_publishes_nothing(small_disk: Path, tmp_path: Path) -> None:
    here, there = Registry(tmp_path / "here"), Registry(small_disk / "there")
    made = make(here, "a", files={"big": b"x" * 900_000})
    here.tag("a", made.key)
    here.push("a", str(tmp_path / "remote"))
    filler = fill_up(small_disk)
    with pytest.raises(DiskFull):
        there.pull("a", str(tmp_path / "remote"))
    assert there.keys() == [] and there.refs() == {}
    filler.unlink()
    assert there.pull("a", str(tmp_path / "remote")).digest == made.digest


def test_a_read_only_home_can_be_read(small_disk: Path) -> None:
    registry = Registry(small_disk / "home")
    made = make(registry, "a")
    registry.tag("a", made.key)
    for file in registry.home.glob("index.sqlite*"):
        file.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    fresh = Registry(registry.home)
    assert fresh.get("a") == made and fresh.lineage("a") == [made.manifest] and fresh.verify() == []
