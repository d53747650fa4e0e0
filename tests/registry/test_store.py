from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest

from registry import Registry, RegistryError, Spec, UnknownArtifact, digest_folder
from registry import store as store_module
from tests.registry.world import FILES, fill, make, settle, spec


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def test_a_published_artifact_is_found_with_its_files_and_manifest(registry: Registry) -> None:
    made = make(registry, "a", licenses=("MIT",))
    found = registry.find(spec("a").key)
    assert found == made
    assert {path: (found.path / path).read_bytes() for path in FILES} == FILES
    manifest = json.loads((found.path / "manifest.json").read_bytes())
    assert manifest["config"] == {"name": "a"}
    assert manifest["metrics"] == {"loss": 0.5}
    assert set(manifest["files"]) == {"weights.bin", "tokenizer/vocab.json"}
    assert set(manifest["records"]) == {"logs/metrics.jsonl"}
    assert found.manifest.size == sum(map(len, FILES.values()))


def test_nothing_is_created_by_looking(registry: Registry) -> None:
    assert registry.find("0" * 32) is None
    assert registry.artifacts() == registry.verify() == registry.gc(dry_run=True) == []
    assert registry.refs() == {}
    with pytest.raises(UnknownArtifact):
        registry.get("nothing")
    assert not [path for path in registry.home.rglob("*") if path.name != "gc.lock" and path.is_file()]


def test_the_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACORN_HOME", str(tmp_path / "elsewhere"))
    assert Registry().home == tmp_path / "elsewhere"
    monkeypatch.delenv("ACORN_HOME")
    assert Registry().home == tmp_path / ".acorn"


def test_files_are_read_only_and_logs_are_no_part_of_the_digest(registry: Registry) -> None:
    one = make(registry, "a", files=FILES)
    other = make(registry, "b", files=FILES | {"logs/metrics.jsonl": b"other timings"})
    assert one.digest == other.digest == digest_folder(one.path)
    assert {path.stat().st_mode & 0o777 for path in one.path.rglob("*") if path.is_file()} == {0o444}


def test_renaming_a_file_changes_the_digest(registry: Registry) -> None:
    one = make(registry, "a", files={"x/y": b"1"})
    other = make(registry, "b", files={"x_y": b"1"})
    assert one.digest != other.digest


def test_artifacts_are_found_by_ref_key_and_unique_prefix(registry: Registry) -> None:
    made = make(registry, "a")
    registry.tag("quickstart/sft", made.key)
    assert registry.get("quickstart/sft") == registry.get(made.key) == registry.get(made.key[:6]) == made
    with pytest.raises(UnknownArtifact, match="did you mean quickstart/sft"):
        registry.get("quickstart/stf")
    with pytest.raises(UnknownArtifact):
        registry.get("../../etc/passwd")
    with pytest.raises(RegistryError, match="is no key"):
        registry.find("../secrets")


def test_an_ambiguous_prefix_is_refused(registry: Registry) -> None:
    registry.artifacts_folder.mkdir(parents=True)
    for last in "12":
        (registry.artifacts_folder / ("abcd" + "0" * 27 + last)).mkdir()
    with pytest.raises(UnknownArtifact, match="start of 2 keys"):
        registry.get("abcd00")


def test_refs_move_and_go(registry: Registry) -> None:
    one, other = make(registry, "a"), make(registry, "b")
    registry.tag("run/model", one.key)
    registry.tag("run/model", other.key)
    registry.tag("run", "run/model")
    assert registry.refs() == {"run": other.key, "run/model": other.key}
    registry.untag("run")
    assert registry.refs() == {"run/model": other.key}
    with pytest.raises(RegistryError, match=r"no ref 'run/modle'; did you mean run/model\?"):
        registry.untag("run/modle")
    with pytest.raises(UnknownArtifact):
        registry.tag("ghost", "0" * 32)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "-a", "a b", "a.json", "a\n", "é", "0" * 32]
)
def test_a_name_that_could_leave_the_folder_or_hide_a_key_is_refused(registry: Registry, name: str) -> None:
    made = make(registry, "a")
    with pytest.raises(RegistryError):
        registry.tag(name, made.key)
    assert registry.refs() == {}


def test_a_damaged_ref_is_named(registry: Registry) -> None:
    registry.tag("a", make(registry, "a").key)
    (registry.refs_folder / "a.json").write_text("{")
    with pytest.raises(RegistryError, match=r"refs/a\.json is damaged"):
        registry.get("a")


def test_lineage_lists_every_ancestor_once_and_inputs_first(registry: Registry) -> None:
    corpus = make(registry, "corpus", licenses=("MIT",))
    tokens = make(registry, "tokens", {"corpus": corpus})
    model = make(registry, "model", {"tokens": tokens, "corpus": corpus}, licenses=("Apache-2.0",))
    assert [each.config["name"] for each in registry.lineage(model.key)] == ["corpus", "tokens", "model"]
    assert model.manifest.licenses == ["Apache-2.0", "MIT"]
    assert model.manifest.inputs["tokens"].key == tokens.key


def test_a_deep_lineage_is_no_problem(registry: Registry) -> None:
    chain = [f"{number:032x}" for number in range(5000)]
    from registry.lineage import ancestors_first

    parents = dict(zip(chain[1:], chain, strict=False))
    assert ancestors_first([chain[-1]], lambda key: [parents[key]] if key in parents else []) == chain


def test_diff_names_the_fields_that_differ(registry: Registry) -> None:
    one = make(registry, "a")
    with registry.build(Spec("toy", 1, "model", {"name": "a", "rate": 1}, {"device": "cpu"}, {"data": one})) as build:
        fill(build)
        other = build.publish(metrics={"loss": 0.5}, libraries={"torch": "2"})
    assert registry.diff(one.key, one.key) == {}
    found = registry.diff(one.key, other.key)
    assert set(found) == {"config.rate", "inputs.data", "libraries.torch"}
    assert found["inputs.data"][1] == one.digest
    assert repr(found["config.rate"]) == "((absent), 1)"


def test_a_diverged_metric_is_recorded(registry: Registry) -> None:
    with registry.build(spec("a")) as build:
        fill(build)
        build.publish(metrics={"loss": math.nan, "tokens": 5})
    metrics = registry.get(build.key).manifest.metrics
    assert math.isnan(float(metrics["loss"])) and metrics["tokens"] == 5


def test_the_index_is_only_a_cache(registry: Registry) -> None:
    made = make(registry, "a")
    registry.tag("a", made.key)
    listed = registry.artifacts()
    for wreck in (lambda file: file.unlink(), lambda file: file.write_bytes(b"no database" * 1000)):
        for file in registry.home.glob("index.sqlite*"):
            wreck(file)
        fresh = Registry(registry.home)
        assert fresh.get("a") == made
        assert fresh.artifacts() == listed
        assert fresh.verify() == []
    registry.reindex()
    assert Registry(registry.home).artifacts() == listed


def test_an_artifact_copied_in_by_hand_is_found_without_the_index(registry: Registry, tmp_path: Path) -> None:
    made = make(registry, "a")
    other = Registry(tmp_path / "other")
    other.artifacts_folder.mkdir(parents=True)
    shutil.copytree(made.path, other.artifacts_folder / made.key)
    assert other.get(made.key).digest == made.digest


def test_an_artifact_is_hashed_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(registry, "a")
    settle()
    registry.find(made.key)

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(store_module, "hash_files", lambda folder, paths: refuse() if list(paths) else {})
    assert registry.find(made.key) == made
    assert pickle.loads(pickle.dumps(registry)).find(made.key) == made


def test_source_digests_follow_content_not_place(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("one")
    before = registry.source_digest(folder)
    folder.rename(tmp_path / "moved")
    assert registry.source_digest(tmp_path / "moved") == before
    (tmp_path / "moved" / "deep" / "a.txt").write_text("two")
    assert registry.source_digest(tmp_path / "moved") != before
    (tmp_path / "moved" / "deep" / "a.txt").write_text("one")
    (tmp_path / "moved" / "b.txt").write_text("")
    assert registry.source_digest(tmp_path / "moved") != before
    with pytest.raises(RegistryError, match="no file or folder at"):
        registry.source_digest(tmp_path / "data")


def test_a_source_of_links_counts_as_the_files_they_lead_to(registry: Registry, tmp_path: Path) -> None:
    blobs, plain, snapshot = tmp_path / "blobs", tmp_path / "plain", tmp_path / "snapshot"
    for folder in (blobs, plain, snapshot):
        folder.mkdir()
    (blobs / "0a1b").write_text("text")
    (plain / "a.txt").write_text("text")
    (snapshot / "a.txt").symlink_to("../blobs/0a1b")
    (snapshot / "loop").symlink_to(".")
    assert registry.source_digest(snapshot) == registry.source_digest(plain)
    (snapshot / "gone").symlink_to("nowhere")
    with pytest.raises(RegistryError, match="broken link"):
        registry.source_digest(snapshot)


def test_a_source_edited_in_place_is_noticed_even_with_its_times_set_back(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    settle()
    before, status = registry.source_digest(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert registry.source_digest(file) != before
