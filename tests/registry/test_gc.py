from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path

import pytest

from registry import DamagedArtifact, Registry, RegistryError, UnknownArtifact
from tests.registry.crashes import exits_at
from tests.registry.world import age, fill, kill, make, spec, start, wait, wait_for


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def test_gc_keeps_what_refs_reach_with_its_ancestors(registry: Registry) -> None:
    corpus = make(registry, "corpus")
    model = make(registry, "model", {"corpus": corpus})
    old = make(registry, "old", {"corpus": corpus})
    older = make(registry, "older", {"old": old})
    registry.tag("best", model.key)
    assert registry.gc(min_age_seconds=0, dry_run=True) == [older.key, old.key]
    assert len(registry.keys()) == 4
    assert registry.gc(min_age_seconds=0) == [older.key, old.key]
    assert sorted(registry.keys()) == sorted([corpus.key, model.key])
    assert registry.verify() == [] and list(registry.trash_folder.iterdir()) == []
    registry.untag("best")
    assert registry.gc(min_age_seconds=0) == [model.key, corpus.key]
    assert list(registry.locks.folder.glob("?" * 32)) == []


def test_gc_spares_what_was_published_hit_or_used_today(registry: Registry) -> None:
    names = ("published", "hit", "used", "idle")
    artifacts = {name: make(registry, name) for name in names}
    age(registry, *(artifacts[name].key for name in names[1:]))
    make(registry, "hit")
    with pytest.raises(ZeroDivisionError), registry.build(spec("consumer", {"data": artifacts["used"]})):
        _ = 1 / 0
    assert registry.gc() == [artifacts["idle"].key]


def test_gc_during_a_consumers_build_removes_nothing_it_needs(registry: Registry, tmp_path: Path) -> None:
    grandparent = make(registry, "grandparent")
    parent = make(registry, "parent", {"data": grandparent})
    ready, go = tmp_path / "ready", tmp_path / "go"

    def consume() -> None:
        with registry.build(spec("consumer", {"data": parent})) as build:
            (build.scratch / "checkpoint").touch()
            ready.touch()
            wait_for(go.exists)
            fill(build, {"copy": (parent.path / "weights.bin").read_bytes()})
            build.publish()

    consumer = start(consume)
    wait_for(ready.exists)
    age(registry, parent.key, grandparent.key)
    os.utime(registry.staging_folder / spec("consumer", {"data": parent}).key, (0, 0))
    assert registry.gc(min_age_seconds=0) == []
    go.touch()
    assert wait(consumer) == 0
    assert registry.verify() == [] and len(registry.lineage(spec("consumer", {"data": parent}).key)) == 3


def test_a_killed_build_pins_nothing_and_its_staging_goes_when_old(registry: Registry, tmp_path: Path) -> None:
    parent = make(registry, "parent")
    ready = tmp_path / "ready"

    def consume() -> None:
        with registry.build(spec("consumer", {"data": parent})) as build:
            (build.scratch / "checkpoint").write_text("x")
            ready.touch()
            time.sleep(600)

    consumer = start(consume)
    wait_for(ready.exists)
    kill(consumer)
    checkpoint = registry.staging_folder / spec("consumer", {"data": parent}).key / "scratch" / "checkpoint"
    assert registry.gc() == [] and checkpoint.exists()
    assert registry.gc(min_age_seconds=0) == [parent.key]
    assert not checkpoint.exists()


@pytest.mark.usefixtures("unsynced")
def test_consumers_racing_gc_either_build_on_a_whole_input_or_are_told_it_is_gone(registry: Registry) -> None:
    def consume(seed: int) -> None:
        for number in range(15):
            try:
                parent = make(registry, f"parent{number % 3}")
                with registry.build(spec(f"consumer{seed}.{number}", {"data": parent})) as build:
                    content = (parent.path / "weights.bin").read_bytes()
                    time.sleep(0.002)
                    fill(build, {"copy": content})
                    build.publish()
                    assert registry.find(parent.key) == parent
            except UnknownArtifact:
                continue

    consumers = [start(lambda seed=seed: consume(seed)) for seed in range(4)]  # type: ignore[misc]
    alive = set(consumers)
    removed = 0
    while alive:
        removed += len(registry.gc(min_age_seconds=0))
        alive -= {pid for pid in alive if _ended(pid)}
    assert removed > 0
    assert registry.verify() == []


def _ended(pid: int) -> bool:
    ended, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0
    return ended != 0


@pytest.mark.usefixtures("unsynced")
def test_an_exit_at_any_call_of_gc_leaves_a_store_without_damage(tmp_path: Path) -> None:
    def prepared(name: str) -> Registry:
        registry = Registry(tmp_path / name)
        parent = make(registry, "parent")
        registry.tag("kept", make(registry, "kept", {"data": parent}).key)
        make(registry, "child", {"data": make(registry, "gone", {"data": parent})})
        return registry

    for call in count():
        registry = prepared(f"{call}")
        if not exits_at(lambda registry=registry: registry.gc(min_age_seconds=0), call):  # type: ignore[misc]
            assert call > 10
            break
        assert registry.verify() == []
        assert all(registry.lineage(manifest.key) for manifest in registry.artifacts())
        registry.gc(min_age_seconds=0)
        assert len(registry.keys()) == 2 and list(registry.trash_folder.iterdir()) == []


def test_gc_does_not_guess_what_a_damaged_artifact_needs(registry: Registry) -> None:
    parent = make(registry, "parent")
    child = make(registry, "child", {"data": parent})
    registry.tag("child", child.key)
    (child.path / "manifest.json").unlink()
    with pytest.raises(DamagedArtifact, match=r"manifest\.json: missing"):
        registry.gc(min_age_seconds=0)
    assert len(registry.keys()) == 2
    registry.untag("child")
    assert set(registry.gc(min_age_seconds=0)) == {parent.key, child.key}


def test_gc_stops_at_a_ref_it_cannot_read(registry: Registry) -> None:
    registry.tag("a", make(registry, "a").key)
    (registry.refs_folder / "a.json").write_text("")
    with pytest.raises(RegistryError, match="damaged"):
        registry.gc(min_age_seconds=0)
    assert len(registry.keys()) == 1
