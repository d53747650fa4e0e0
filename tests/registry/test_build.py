"""Publication, and what happens when it is interrupted at any point."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from registry import Build, Registry, RegistryError, Spec, UnknownArtifact
from tests.registry.crashes import exits_at
from tests.registry.world import FILES, fill, kill, make, spec, start, wait, wait_for


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def leftovers(registry: Registry) -> list[Path]:
    """What a finished build must not leave behind."""
    return [path for folder in ("staging", "trash") for path in (registry.home / folder).glob("*")]


def test_out_is_empty_and_scratch_is_kept_on_a_second_attempt(registry: Registry) -> None:
    with pytest.raises(ZeroDivisionError), registry.build(spec("a")) as build:
        (build.out / "stale").write_text("from the first attempt")
        (build.scratch / "checkpoint").write_text("step 10")
        (build.out / "closed").mkdir(mode=0o555)
        _ = 1 / 0
    with registry.build(spec("a")) as build:
        assert build.artifact is None
        assert list(build.out.iterdir()) == []
        assert (build.scratch / "checkpoint").read_text() == "step 10"
        fill(build)
        build.publish()
    assert leftovers(registry) == []


def test_a_second_build_of_a_key_is_a_hit(registry: Registry) -> None:
    made = make(registry, "a")
    with registry.build(spec("a")) as build:
        assert build.artifact == made
        with pytest.raises(RegistryError, match="published already"):
            build.publish()


def _link(out: Path) -> None:
    (out / "link").symlink_to("/etc/passwd")


def _fifo(out: Path) -> None:
    os.mkfifo(out / "pipe")


def _reserved(out: Path) -> None:
    (out / "manifest.json").write_text("{}")


def _bad_name(out: Path) -> None:
    (out / "a\nb").write_text("")


def _not_text(out: Path) -> None:
    Path(os.fsdecode(os.fsencode(out) + b"/\xff")).write_text("")


def _only_logs(out: Path) -> None:
    for path in [path for path in out.rglob("*") if path.is_file()]:
        path.unlink()
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / "x").write_text("")


def _replaced(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))
    out.symlink_to("elsewhere")


@pytest.mark.parametrize("spoil", [_link, _fifo, _reserved, _bad_name, _not_text, _only_logs, _replaced])
def test_what_cannot_be_published_is_refused_and_nothing_is_published(
    registry: Registry, spoil: Callable[[Path], None]
) -> None:
    with pytest.raises(RegistryError) as error, registry.build(spec("a")) as build:
        fill(build)
        spoil(build.out)
        build.publish()
    assert str(build.out) in str(error.value)
    assert registry.keys() == registry.verify() == []
    make(registry, "a")


def test_a_hard_link_does_not_lead_into_an_artifact(registry: Registry, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("before")
    with registry.build(spec("a")) as build:
        os.link(outside, build.out / "inside")
        made = build.publish()
    outside.write_text("after")
    assert (made.path / "inside").read_text() == "before"
    assert registry.verify() == []


def test_a_stage_that_is_still_writing_is_noticed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from registry import build as module

    original = module.hash_files

    def hash_while_written(folder: Path, paths: object) -> object:
        result = original(folder, paths)  # type: ignore[arg-type]
        (folder / "weights.bin").chmod(0o644)
        (folder / "weights.bin").write_bytes(b"late")
        return result

    monkeypatch.setattr(module, "hash_files", hash_while_written)
    with pytest.raises(RegistryError, match=r"weights\.bin changed while"):
        make(registry, "a")
    assert registry.keys() == []


def test_what_the_manifest_cannot_hold_is_refused_before_work(registry: Registry) -> None:
    bad = Spec("toy", 1, "model", {"rate": float("nan")})
    with pytest.raises(RegistryError, match=r"config\.rate"), registry.build(bad):
        raise AssertionError("work began")
    with (
        pytest.raises(RegistryError, match=r"execution\.path"),
        registry.build(Spec("toy", 1, "model", {}, {"path": Path()})),
    ):
        raise AssertionError("work began")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": {"loss": "low"}}, "loss is 'low': metrics and ledger hold numbers only"),
        ({"libraries": {"torch": None}}, r"cannot record libraries\.torch"),
        ({"git": {"branch": "main"}}, r"cannot record git\.branch"),
    ],
)
def test_a_measurement_that_is_no_number_or_text_is_named(
    registry: Registry, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RegistryError, match=message), registry.build(spec("a")) as build:
        fill(build)
        build.publish(**arguments)
    assert registry.keys() == []


def test_an_input_that_is_gone_is_an_error_before_work(registry: Registry) -> None:
    data = make(registry, "data")
    registry.gc(min_age_seconds=0)
    with pytest.raises(UnknownArtifact, match="input data"), registry.build(spec("model", {"data": data})):
        raise AssertionError("work began")


def test_everything_published_is_synced_before_the_rename_and_its_folder_after(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.rename

    def recorded_sync(descriptor: int) -> None:
        events.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def recorded_rename(source: Path, target: Path) -> None:
        events.append(("rename", Path(source).stat().st_ino))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    made = make(registry, "a")
    at = events.index(("rename", made.path.stat().st_ino))
    synced = {inode for kind, inode in events[:at] if kind == "sync"}
    assert {path.stat().st_ino for path in (made.path, *made.path.rglob("*"))} <= synced
    assert ("sync", registry.artifacts_folder.stat().st_ino) in events[at:]


@pytest.mark.usefixtures("unsynced")
def test_an_exit_at_any_call_of_a_publication_leaves_a_clean_store(tmp_path: Path) -> None:
    expected = make(Registry(tmp_path / "expected"), "a").digest
    for before in (True, False):
        for call in count():
            registry = Registry(tmp_path / f"{call}{before}")
            if not exits_at(lambda registry=registry: make(registry, "a"), call, before):  # type: ignore[misc]
                assert call > 30
                break
            found = registry.find(spec("a").key)
            assert found is None or found.digest == expected
            assert registry.verify() == []
            assert make(registry, "a").digest == expected
            assert registry.verify() == []
            assert leftovers(registry) == []


def test_an_exit_at_any_call_of_tagging_leaves_the_old_name_or_the_new(registry: Registry) -> None:
    one, other = make(registry, "a"), make(registry, "b")
    registry.tag("r", one.key)
    seen = []
    for call in count():
        registry.tag("r", one.key)
        if not exits_at(lambda: registry.tag("r", other.key), call):
            break
        seen.append(registry.refs()["r"])
    assert set(seen) == {one.key, other.key}
    registry.gc(min_age_seconds=0)
    assert sorted(path.name for path in registry.refs_folder.iterdir()) == ["r.json"]


PIECES = 6


def piecewise(home: Path, journal: Path) -> None:
    """A stage that makes pieces in scratch, noting each in a journal, then assembles and publishes them."""
    with Registry(home).build(spec("pieces")) as build:
        if build.artifact is not None:
            return
        for number in range(PIECES):
            piece = build.scratch / f"{number}"
            if not piece.exists():
                with journal.open("a") as file:
                    file.write(f"{number}\n")
                piece.with_suffix(".part").write_bytes(bytes([number]) * 1000)
                piece.with_suffix(".part").rename(piece)
            (build.out / f"{number}").write_bytes(piece.read_bytes())
        build.publish()


@pytest.mark.usefixtures("unsynced")
def test_kill_9_at_random_moments_publishes_nothing_broken_and_a_retry_resumes(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert wait(start(lambda: piecewise(tmp_path / "whole", tmp_path / "journal"))) == 0
    duration = time.monotonic() - begin
    expected = Registry(tmp_path / "whole").get(spec("pieces").key).digest
    for seed in range(30):
        rng = random.Random(seed)
        home, journal, kills = tmp_path / f"home{seed}", tmp_path / f"journal{seed}", 0
        registry = Registry(home)
        for _ in range(2):
            pid = start(lambda home=home, journal=journal: piecewise(home, journal))  # type: ignore[misc]
            time.sleep(rng.uniform(0, duration))
            kills += kill(pid) < 0
            found = registry.find(spec("pieces").key)
            assert found is None or found.digest == expected
            assert registry.verify() == []
        piecewise(home, journal)
        assert registry.get(spec("pieces").key).digest == expected
        assert leftovers(registry) == []
        made = Counter(journal.read_text().split())
        assert len(made) == PIECES
        assert sum(made.values()) <= PIECES + kills, "a finished piece was made again"


def test_sixteen_processes_racing_for_one_key_build_it_once(tmp_path: Path) -> None:
    home, built, waited, gate = (tmp_path / name for name in ("home", "built", "waited", "gate"))

    def race() -> None:
        wait_for(gate.exists)
        with Registry(home).build(spec("a"), on_wait=lambda: note(waited)) as build:
            if build.artifact is None:
                note(built)
                fill(build)
                wait_for(waited.exists)
                build.publish()
            assert build.artifact is not None
            note(tmp_path / build.artifact.digest)

    racers = [start(race) for _ in range(16)]
    gate.touch()
    assert [wait(pid) for pid in racers] == [0] * 16
    made = make(Registry(home), "a")
    assert built.read_text() == "."
    assert (tmp_path / made.digest).read_text() == "." * 16
    assert waited.exists()
    assert Registry(home).verify() == []


def note(file: Path) -> None:
    with file.open("a") as opened:
        opened.write(".")


def test_a_key_stays_locked_while_a_child_of_a_killed_builder_lives(registry: Registry, tmp_path: Path) -> None:
    ready, waiting = tmp_path / "ready", tmp_path / "waiting"
    sleeper = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]

    def launch() -> None:
        with registry.build(spec("a")) as build:
            subprocess.Popen(sleeper, stdin=reader, pass_fds=[build.lock_fd])
            ready.touch()
            time.sleep(600)

    reader, writer = os.pipe()
    builder = start(launch)
    wait_for(ready.exists)
    kill(builder)
    second = start(lambda: [os.close(writer), second_build(registry, waiting)])
    wait_for(waiting.exists)
    assert os.waitpid(second, os.WNOHANG) == (0, 0)
    os.close(writer)  # ends the child
    os.close(reader)
    assert wait(second) == 0
    assert registry.verify() == [] and len(registry.keys()) == 1


def second_build(registry: Registry, waiting: Path) -> None:
    with registry.build(spec("a"), on_wait=waiting.touch) as build:
        assert build.artifact is None
        fill(build)
        build.publish()


def test_a_key_stays_locked_while_a_child_of_a_failed_builder_lives(registry: Registry) -> None:
    with pytest.raises(ZeroDivisionError), registry.build(spec("a")) as build:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[build.lock_fd]
        )
        _ = 1 / 0
    try:
        assert registry.locks.held() == {build.key}
    finally:
        child.communicate(b"\n")
    assert registry.locks.held() == set()


def test_a_published_key_is_free_even_if_a_child_lingers(registry: Registry) -> None:
    with registry.build(spec("a")) as build:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[build.lock_fd]
        )
        fill(build)
        build.publish()
    try:
        make(registry, "a")
    finally:
        child.communicate(b"\n")


def test_two_threads_do_not_build_one_key_twice(registry: Registry) -> None:
    from concurrent.futures import ThreadPoolExecutor

    built: list[Build] = []

    def race(_: int) -> str:
        with registry.build(spec("a")) as build:
            if build.artifact is None:
                built.append(build)
                fill(build)
                build.publish()
            assert build.artifact is not None
            return build.artifact.digest

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(race, range(8)))) == 1
    assert len(built) == 1


def test_an_attempt_with_more_files_than_the_first_publishes_only_its_own(registry: Registry) -> None:
    with pytest.raises(KeyboardInterrupt), registry.build(spec("a")) as build:
        fill(build, FILES | {"extra": b"1"})
        raise KeyboardInterrupt
    assert "extra" not in make(registry, "a").manifest.files
