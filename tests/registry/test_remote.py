from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from registry import Artifact, DamagedArtifact, DiskFull, Registry, RegistryError, UnknownArtifact, canonical_json
from registry import remote as remote_module
from registry.digest import merkle
from registry.keys import artifact_key, sha256_text
from tests.registry.crashes import exits_at
from tests.registry.world import FILES, flip_bit, make


@pytest.fixture
def here(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "there")


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote"


@pytest.fixture
def model(here: Registry) -> Artifact:
    corpus = make(here, "corpus", licenses=("MIT",))
    tokens = make(here, "tokens", {"corpus": corpus})
    made = make(here, "model", {"tokens": tokens})
    here.tag("run/model", made.key)
    return made


def test_an_artifact_travels_with_its_ref_and_the_manifests_of_its_ancestors(
    here: Registry, there: Registry, model: Artifact
) -> None:
    here.push("run/model", "memory://bucket/travel")
    pulled = there.pull("run/model", "memory://bucket/travel")
    assert pulled.manifest == model.manifest and pulled.path.is_relative_to(there.home)
    assert {path: (pulled.path / path).read_bytes() for path in FILES} == FILES
    assert there.keys() == [model.key] and there.refs() == {"run/model": model.key}
    assert there.lineage("run/model") == here.lineage("run/model")
    assert there.verify() == [] and there.gc(min_age_seconds=0) == []
    assert len(there.lineage("run/model")) == 3
    assert list(there.staging_folder.iterdir()) == []


def test_a_whole_lineage_travels_when_asked(here: Registry, there: Registry, remote: Path, model: Artifact) -> None:
    here.push("run/model", f"file://{remote}", lineage=True)
    there.pull(model.key, str(remote), lineage=True)
    assert there.keys() == here.keys() and there.refs() == {}
    assert there.verify() == []


def test_an_ancestor_whose_data_was_not_pulled_cannot_be_tagged(
    here: Registry, there: Registry, remote: Path, model: Artifact
) -> None:
    here.push("run/model", str(remote))
    there.pull("run/model", str(remote))
    with pytest.raises(UnknownArtifact, match="only its manifest is here"):
        there.tag("tokens", model.manifest.inputs["tokens"].key)


def test_pulling_a_lineage_that_was_not_pushed_says_so(
    here: Registry, there: Registry, remote: Path, model: Artifact
) -> None:
    here.push("run/model", str(remote))
    with pytest.raises(UnknownArtifact, match="does not hold the data"):
        there.pull("run/model", str(remote), lineage=True)
    assert there.keys() == []


@pytest.mark.parametrize("path", [*FILES, "manifest.json"])
def test_a_damaged_copy_is_refused_and_nothing_is_published(
    here: Registry, there: Registry, remote: Path, model: Artifact, path: str
) -> None:
    here.push("run/model", str(remote))
    file = remote / "artifacts" / model.key / path
    good = file.read_bytes()
    for damage in ("flipped", "shorter", "longer", "missing"):
        file.write_bytes(good)
        if damage == "flipped":
            flip_bit(file, 5, 1)
        elif damage == "missing":
            file.unlink()
        else:
            file.write_bytes(good[:-1] if damage == "shorter" else good + b" ")
        with pytest.raises(
            RegistryError, match="no artifact" if file.name + damage == "manifest.jsonmissing" else path
        ):
            there.pull("run/model", str(remote))
        assert there.keys() == [] and there.refs() == {} and there.verify() == []
    here.push("run/model", str(remote), force=True)
    assert there.pull("run/model", str(remote)).digest == model.digest


def test_a_damaged_ancestor_manifest_is_refused(here: Registry, there: Registry, remote: Path, model: Artifact) -> None:
    here.push("run/model", str(remote))
    file = remote / "manifests" / f"{model.manifest.inputs['tokens'].key}.json"
    flip_bit(file, 40)
    with pytest.raises(DamagedArtifact, match=file.name):
        there.pull("run/model", str(remote))
    assert there.keys() == [] and there.refs() == {}


def forge(remote: Path, model: Artifact, **changes: Any) -> None:
    """Put a manifest on the remote that is consistent in itself: what a hostile remote would do."""
    manifest = model.manifest.model_dump(mode="json") | changes
    manifest["digest"] = merkle(manifest["files"])
    digests = {role: entry["digest"] for role, entry in manifest["inputs"].items()}
    manifest["key"] = artifact_key(manifest["stage"], manifest["stage_version"], manifest["config"], digests)
    manifest["checksum"] = sha256_text(
        canonical_json({name: manifest[name] for name in manifest if name != "checksum"})
    )
    file = remote / "artifacts" / model.key / "manifest.json"
    file.write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


EVIL = {"sha256": sha256_text("evil"), "size": 4}


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../evil",
            "../../../../evil",
            "/tmp/evil",
            "a/../../evil",
            "./evil",
            "a//evil",
            "",
            "..",
            "a\\evil",
            "a\nevil",
        ),
        *("manifest.json", "logs/evil", "x" * 300, "weights.bin/evil"),
    ],
)
def test_a_hostile_manifest_cannot_write_outside_the_store(
    here: Registry, there: Registry, remote: Path, model: Artifact, path: str
) -> None:
    here.push("run/model", str(remote))
    entries = {name: entry.model_dump() for name, entry in model.manifest.files.items()}
    forge(remote, model, files=entries)
    assert there.pull("run/model", str(remote)).digest == model.digest, "the forgery itself is well made"
    forge(remote, model, files=entries | {path: EVIL})
    fresh = Registry(there.home / "deep" / "fresh")
    before = set(there.home.parent.rglob("*"))
    with pytest.raises(DamagedArtifact, match=r"manifest\.json"):
        fresh.pull("run/model", str(remote))
    assert {path for path in set(there.home.parent.rglob("*")) - before if path.is_file()} == set()


@pytest.mark.parametrize("changes", [{"config": {"x": float("nan")}}, {"config": "\ud800"}, {"schema_version": 9}])
def test_other_forgeries_are_refused(
    here: Registry, there: Registry, remote: Path, model: Artifact, changes: dict[str, Any]
) -> None:
    here.push("run/model", str(remote))
    file = remote / "artifacts" / model.key / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DamagedArtifact):
        there.pull("run/model", str(remote))
    file.write_text("[" * 100_000)
    with pytest.raises(DamagedArtifact):
        there.pull("run/model", str(remote))


@pytest.mark.parametrize("key", ["../../x", "0" * 31, 7, None, ["a"]])
def test_a_hostile_ref_is_refused(here: Registry, there: Registry, remote: Path, model: Artifact, key: Any) -> None:
    here.push("run/model", str(remote))
    (remote / "refs" / "run" / "model.json").write_text(json.dumps({"key": key}))
    with pytest.raises(RegistryError, match="is no key"):
        there.pull("run/model", str(remote))
    with pytest.raises(RegistryError, match="cannot name"):
        there.pull("../model", str(remote))
    with pytest.raises(UnknownArtifact, match="has no ref"):
        there.pull("run/other", str(remote))


@pytest.mark.usefixtures("unsynced")
def test_an_exit_at_any_call_of_a_push_leaves_nothing_that_a_pull_would_take_for_whole(
    here: Registry, tmp_path: Path, model: Artifact
) -> None:
    for call in count():
        remote, there = str(tmp_path / f"remote{call}"), Registry(tmp_path / f"there{call}")
        if not exits_at(lambda remote=remote: here.push("run/model", remote), call):  # type: ignore[misc]
            assert call > 10
            break
        try:
            assert there.pull(model.key, remote).digest == model.digest
        except UnknownArtifact:
            assert there.keys() == []
        here.push("run/model", remote, force=True)
        assert there.pull("run/model", remote).digest == model.digest


@pytest.mark.usefixtures("unsynced")
def test_an_exit_at_any_call_of_a_pull_leaves_a_clean_store(here: Registry, remote: Path, tmp_path: Path) -> None:
    model = make(here, "model", {"data": make(here, "data", files={"a": b"a"})}, files={"w": b"w", "logs/m": b"m"})
    here.push(model.key, str(remote), lineage=True)
    for call in count():
        there = Registry(tmp_path / f"there{call}")
        if not exits_at(lambda there=there: there.pull(model.key, str(remote), lineage=True), call):  # type: ignore[misc]
            assert call > 30
            break
        assert there.verify() == []
        assert there.pull(model.key, str(remote)).digest == model.digest
        assert there.verify() == [] and len(there.lineage(model.key)) == 2


def test_an_interrupted_pull_fetches_only_what_is_missing(
    here: Registry, there: Registry, remote: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.push("run/model", str(remote))
    lost = remote / "artifacts" / model.key / "weights.bin"
    lost.rename(lost.with_suffix(".aside"))
    with pytest.raises(DamagedArtifact, match="missing on the remote"):
        there.pull("run/model", str(remote))
    lost.with_suffix(".aside").rename(lost)
    (remote / "artifacts" / model.key / "logs" / "metrics.jsonl").unlink()  # fetched already, so it is not missed
    assert there.pull("run/model", str(remote)).digest == model.digest


@pytest.mark.parametrize("lineage", [False, True])
def test_gc_during_a_pull_removes_nothing_of_what_arrives(
    here: Registry, there: Registry, remote: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch, lineage: bool
) -> None:
    here.push("run/model", str(remote), lineage=True)
    fetch = remote_module._fetch_file
    collected: list[list[str]] = []

    def fetch_amid_gc(*arguments: Any) -> None:
        collected.append(there.gc(min_age_seconds=0))
        fetch(*arguments)

    monkeypatch.setattr(remote_module, "_fetch_file", fetch_amid_gc)
    there.pull("run/model", str(remote), lineage=lineage)
    assert collected and not any(collected)
    assert there.lineage("run/model") == here.lineage("run/model")
    assert len(there.keys()) == (3 if lineage else 1)


def test_an_unfinished_push_is_not_mistaken_for_an_artifact(
    here: Registry, there: Registry, remote: Path, model: Artifact
) -> None:
    here.push("run/model", str(remote))
    (remote / "artifacts" / model.key / "manifest.json").unlink()
    with pytest.raises(UnknownArtifact, match="push did not finish"):
        there.pull("run/model", str(remote))


def test_two_builds_of_one_key_are_not_mixed(here: Registry, there: Registry, remote: Path, model: Artifact) -> None:
    here.push("run/model", str(remote))
    corpus = make(there, "corpus", licenses=("MIT",))
    tokens = make(there, "tokens", {"corpus": corpus})
    other = make(there, "model", {"tokens": tokens}, files={"weights.bin": b"another GPU"})
    there.tag("run/model", other.key)
    assert other.key == model.key
    with pytest.raises(RegistryError, match="another build of the same key"):
        there.pull("run/model", str(remote))
    with pytest.raises(RegistryError, match="another build"):
        there.push("run/model", str(remote))
    there.push("run/model", str(remote), force=True)
    shutil.rmtree(here.artifacts_folder / model.key)
    assert here.pull("run/model", str(remote)).digest == other.digest


def test_a_pull_that_cannot_fit_is_refused_before_it_starts(
    here: Registry, there: Registry, remote: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.push("run/model", str(remote))
    entries = {name: entry.model_dump() for name, entry in model.manifest.files.items()}
    forge(remote, model, files=entries | {"huge": {"sha256": "0" * 64, "size": 1 << 60}})
    monkeypatch.setattr(remote_module, "_fetch_file", lambda *_: pytest.fail("download began"))
    with pytest.raises(DiskFull, match="MB needed"):
        there.pull("run/model", str(remote))
