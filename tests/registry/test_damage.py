"""One changed bit, anywhere, is an error that names the file."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from registry import DamagedArtifact, Registry, RegistryError
from registry.manifest import read_manifest
from tests.registry.world import FILES, flip_bit, make, settle


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


@pytest.mark.parametrize("path", [*FILES, "manifest.json"])
@pytest.mark.parametrize("keep_times", [False, True])
def test_one_flipped_bit_is_found_and_named(registry: Registry, path: str, keep_times: bool) -> None:
    made = make(registry, "a")
    registry.tag("a", made.key)
    settle()
    assert registry.get("a") == made
    rng = random.Random(path)
    flip_bit(made.path / path, rng.randrange((made.path / path).stat().st_size), rng.randrange(8), keep_times)
    with pytest.raises(DamagedArtifact, match=path.replace(".", r"\.")) as error:
        registry.get("a")
    assert error.value.file == made.path / path and error.value.key == made.key
    (damage,) = registry.verify()
    assert str(made.path / path) in damage


def test_damage_right_after_publication_is_found(registry: Registry) -> None:
    # Within one clock tick of the kernel the file's times do not tell: nothing may be remembered that early.
    for number in range(20):
        made = make(registry, f"{number}", files={"f": b"0"})
        flip_bit(made.path / "f")
        with pytest.raises(DamagedArtifact):
            registry.find(made.key)


def test_a_verification_is_remembered_only_once_the_files_were_left_alone(registry: Registry) -> None:
    made = make(registry, "a")
    before = registry.index.verified(made.key)  # Something already, where publishing took long enough.
    soon = time.time() + 60  # as if written this very moment, however slow the test
    os.utime(made.path / "weights.bin", (soon, soon))
    registry.find(made.key)
    assert registry.index.verified(made.key) == before
    os.utime(made.path / "weights.bin", (0, 0))
    settle()
    registry.find(made.key)
    assert registry.index.verified(made.key) not in (None, before)


def test_every_single_bit_of_a_manifest_counts(registry: Registry) -> None:
    made = make(registry, "a", files={"f": b"0"})
    raw = (made.path / "manifest.json").read_bytes()
    assert read_manifest(raw, made.key) == made.manifest
    for position in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            with pytest.raises(ValueError):
                read_manifest(bytes(changed), made.key)


def test_files_that_vanish_appear_shrink_or_turn_into_links_are_named(registry: Registry) -> None:
    made = make(registry, "a")
    (made.path / "weights.bin").unlink()
    (made.path / "extra").write_text("")
    (made.path / "tokenizer" / "vocab.json").chmod(0o644)
    (made.path / "tokenizer" / "vocab.json").write_text("{")
    damages = registry.verify([made.key])
    assert [next(name for name in ("extra", "vocab.json", "weights.bin") if name in damage) for damage in damages] == [
        "extra",
        "vocab.json",
        "weights.bin",
    ]
    (made.path / "weights.bin").symlink_to("/dev/zero")
    with pytest.raises(DamagedArtifact, match="symbolic link"):
        registry.find(made.key)
    assert "symbolic link" in registry.verify()[0]


def test_a_folder_without_a_manifest_is_damaged(registry: Registry) -> None:
    made = make(registry, "a")
    (made.path / "manifest.json").unlink()
    with pytest.raises(DamagedArtifact, match="missing"):
        registry.find(made.key)
    assert len(registry.verify()) == 1
    assert registry.artifacts() == []


def test_one_artifact_cannot_stand_in_for_another(registry: Registry) -> None:
    one, other = make(registry, "a"), make(registry, "b")
    one.path.rename(one.path.with_name("spare"))
    other.path.rename(one.path)
    with pytest.raises(DamagedArtifact, match=f"manifest of {other.key}"):
        registry.find(one.key)


def test_a_manifest_of_a_newer_acorn_is_not_misread(registry: Registry) -> None:
    made = make(registry, "a")
    file = made.path / "manifest.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DamagedArtifact, match="schema version 2, this acorn reads 1"):
        registry.find(made.key)


def test_a_damaged_artifact_is_rebuilt_once_its_folder_is_gone(registry: Registry) -> None:
    made = make(registry, "a")
    flip_bit(made.path / "weights.bin")
    with pytest.raises(DamagedArtifact, match="delete the artifact's folder"):
        make(registry, "a")
    made.path.rename(registry.home / "aside")
    assert make(registry, "a").digest == made.digest


def test_verify_reports_refs_to_nothing_and_unknown_keys(registry: Registry) -> None:
    made = make(registry, "a")
    registry.tag("a", made.key)
    made.path.rename(registry.home / "aside")
    assert registry.verify() == [f"ref a names {made.key}, which is not here: pull it or untag it"]
    assert registry.verify([made.key]) == [f"artifact {made.key} is not here"]


def test_errors_share_a_base() -> None:
    assert issubclass(DamagedArtifact, RegistryError)
