"""Building one artifact: take its lock, work in staging, publish by one rename.

Every step is ordered so that a kill or power cut at any point leaves either nothing or the whole artifact:
files are hashed and synced, the manifest written last, then one rename puts all of it into `artifacts/`. `out` is
emptied when an attempt starts, so nothing stale is ever published; `scratch` is kept until the artifact is there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.digest import RECORDS, Entry, fingerprint, hash_files
from registry.errors import RegistryError, UnknownArtifact, naming_full_disk
from registry.files import MANIFEST, list_files, make_folder, prune_empty_folders, remove_tree, sync, sync_tree
from registry.keys import artifact_key, plain
from registry.locks import GC
from registry.manifest import Manifest, make_manifest, numbers

if TYPE_CHECKING:
    from registry.store import Artifact, Registry

PINS = "pins.json"


@dataclass(frozen=True)
class Spec:
    """What is to be built: `config` is the canonical identity (outside data as digests), `sources` notes where outside
    data lay, `inputs` are found artifacts by role."""

    stage: str
    version: int
    kind: str
    config: Mapping[str, Any]
    execution: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The artifact's key. Raises RegistryError if `config` has no canonical JSON."""
        digests = {role: artifact.digest for role, artifact in self.inputs.items()}
        return artifact_key(self.stage, self.version, self.config, digests)


@dataclass
class Build:
    """A key held for building. Either `artifact` is there already, or `out` awaits its files and then `publish`."""

    registry: Registry
    spec: Spec
    key: str
    lock_fd: int
    """Pass it to child processes (`pass_fds`): the key stays locked until the last of them is gone."""
    artifact: Artifact | None

    @property
    def folder(self) -> Path:
        return self.registry.staging_folder / self.key

    @property
    def out(self) -> Path:
        """What is here is published. Empty at the start."""
        return self.folder / "out"

    @property
    def scratch(self) -> Path:
        """Kept between attempts until the artifact is published."""
        return self.folder / "scratch"

    def publish(
        self,
        metrics: Mapping[str, Any] | None = None,
        ledger: Mapping[str, Any] | None = None,
        licenses: Sequence[str] = (),
        libraries: Mapping[str, str] | None = None,
        git: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Make what lies in `out` the artifact. `licenses` are those of data this step brought in; its inputs' are
        added. Raises RegistryError at links, special files, an empty `out`, a file still being written, a full disk.
        """
        if self.artifact is not None:
            raise RegistryError(f"artifact {self.key} is published already: it cannot be replaced")
        measured = {"metrics": numbers(metrics or {}), "ledger": numbers(ledger or {})}
        inherited = {license for artifact in self.spec.inputs.values() for license in artifact.manifest.licenses}
        with naming_full_disk(self.folder):
            files, records = seal(self.out)
            manifest = make_manifest(
                kind=self.spec.kind,
                stage=self.spec.stage,
                stage_version=self.spec.version,
                config=self.spec.config,
                inputs={role: {"key": each.key, "digest": each.digest} for role, each in self.spec.inputs.items()},
                files=files,
                records=records,
                execution=self.spec.execution,
                sources=self.spec.sources,
                libraries=libraries or {},
                git=git or {},
                licenses=sorted(inherited.union(licenses)),
                **measured,
            )
            self.artifact = place(self.registry, self.out, manifest)
            remove_tree(self.folder)
        return self.artifact


@contextmanager
def open_build(registry: Registry, spec: Spec, on_wait: Callable[[], None] | None) -> Iterator[Build]:
    """Hold `spec`'s key: see `Registry.build`."""
    key = spec.key
    plain({"execution": spec.execution, "sources": spec.sources})  # what publish would refuse is refused before work
    with naming_full_disk(registry.staging_folder / key):
        held = registry.locks.acquire(key, on_wait=on_wait)
        finished = False
        try:
            build = _start(registry, spec, key, held.descriptor)
            yield build
            finished = build.artifact is not None
        finally:
            # After a failure children may still be writing to staging: the lock stays theirs until they are gone.
            held.release() if finished else held.leave()


def _start(registry: Registry, spec: Spec, key: str, descriptor: int) -> Build:
    """Under the shared gc lock: find a hit or pin the inputs. Either is safe from gc for as long as the key is held."""
    with registry.locks.holding(GC, shared=True):
        build = Build(registry, spec, key, descriptor, registry.find(key))
        if build.artifact is not None:
            os.utime(build.artifact.path)
        else:
            _pin_inputs(build)
    if build.artifact is not None:
        remove_tree(build.folder)  # left by a builder that died between publishing and tidying
        return build
    remove_tree(build.out)
    build.out.mkdir()
    build.scratch.mkdir(exist_ok=True)
    return build


def _pin_inputs(build: Build) -> None:
    for role, artifact in build.spec.inputs.items():
        current = build.registry.find(artifact.key)
        if current is None:
            raise UnknownArtifact(f"input {role} ({artifact.key}) was removed meanwhile; run the recipe again")
        if current.digest != artifact.digest:
            raise RegistryError(f"input {role} ({artifact.key}) was rebuilt meanwhile; run the recipe again")
        os.utime(current.path)  # in use: its day of grace starts anew
    write_pins(build.folder, (artifact.key for artifact in build.spec.inputs.values()))


def write_pins(folder: Path, keys: Iterable[str]) -> None:
    """Keep `keys` and their ancestors from gc for as long as the lock of the staging `folder`'s key is held. The
    caller holds that lock, and the gc lock shared."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PINS).write_text(json.dumps(list(keys)), encoding="utf-8")


def seal(folder: Path) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Make the files under `folder` read-only and hash them: (files, records), each {path: {"sha256", "size"}}.

    Raises RegistryError at anything that cannot be published, or that changed while it was hashed.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise RegistryError(f"{folder} is no folder any more: a stage must write into it, not replace it")
    prune_empty_folders(folder)
    for path, status in list(list_files(folder)):
        _own(folder / path, status)
    before = {path: fingerprint(status) for path, status in list_files(folder)}
    if MANIFEST in before:
        raise RegistryError(f"{folder / MANIFEST}: this name is the registry's; the stage must choose another")
    if all(path.startswith(RECORDS) for path in before):
        raise RegistryError(f"{folder} is empty: the stage wrote no file (those under {RECORDS} do not count)")
    entries = hash_files(folder, before)
    after = {path: fingerprint(status) for path, status in list_files(folder)}
    if changed := sorted(path for path in {*before, *after} if before.get(path) != after.get(path)):
        raise RegistryError(
            f"{folder / changed[0]} changed while it was published: a process of the stage is still writing; "
            "it must end before the stage returns"
        )
    files = {path: entry for path, entry in entries.items() if not path.startswith(RECORDS)}
    return files, {path: entry for path, entry in entries.items() if path not in files}


def _own(file: Path, status: os.stat_result) -> None:
    """Read-only, and no other name leads to its bytes: a hard link elsewhere could change a published file."""
    if status.st_nlink > 1:
        copy = file.with_name(file.name[:200] + ".unlinked")
        shutil.copyfile(file, copy)
        os.replace(copy, file)  # noqa: PTH105
    file.chmod(0o444)


def place(registry: Registry, folder: Path, manifest: Manifest) -> Artifact:
    """Write `manifest` into the sealed `folder` and rename it to its place. The caller holds the key's lock."""
    from registry.store import Artifact

    raw = manifest.render()
    target = registry.artifacts_folder / manifest.key
    make_folder(registry.artifacts_folder)
    try:
        (folder / MANIFEST).write_bytes(raw)
        (folder / MANIFEST).chmod(0o444)
        sync_tree(folder)
        os.utime(folder)
        os.rename(folder, target)  # noqa: PTH104
    except OSError as error:
        (folder / MANIFEST).unlink(missing_ok=True)
        if error.errno == errno.EXDEV:
            raise RegistryError(
                f"{folder} and {target} are on different file systems; a home must be on one"
            ) from error
        raise
    sync(registry.artifacts_folder)
    registry.remember(manifest, hashlib.sha256(raw).hexdigest(), dict(list_files(target)))
    return Artifact(manifest.key, manifest.digest, manifest.kind, target, manifest)
