"""The registry: every result of every stage, found by what it is made of.

`<home>/artifacts/<key>/` holds files and `manifest.json`, written once; `refs/` names them. Reading verifies: the
first time by hashing every byte, later by comparing inode, size and times of each file with what was verified (about
0.1 ms for a small artifact). The whole state is plain files; `index.sqlite` can be deleted at any time.

The registry knows keys, folders and JSON; it knows nothing of the stages that use it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import gc, lineage, remote
from registry.build import Build, Spec, open_build
from registry.digest import digest_path, fingerprint, hash_files, settled
from registry.errors import DamagedArtifact, NotPlain, RegistryError, UnknownArtifact, naming_full_disk
from registry.files import MANIFEST, list_files
from registry.index import Index
from registry.keys import is_key, sha256_text
from registry.locks import GC, Locks
from registry.manifest import MAX_BYTES, FileEntry, Manifest, read_manifest
from registry.refs import Refs

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A published folder, verified when it was found."""

    key: str
    digest: str
    kind: str
    path: Path
    """The folder with its files and `manifest.json`; read-only."""
    manifest: Manifest


class Registry:
    """The artifacts under `home` (default: `$ACORN_HOME`, else `./.acorn`). Nothing is created before it is needed."""

    def __init__(self, home: Path | str | None = None) -> None:
        self.home = Path(home or os.environ.get("ACORN_HOME") or ".acorn").expanduser().absolute()
        self.artifacts_folder = self.home / "artifacts"
        self.staging_folder = self.home / "staging"
        self.refs_folder = self.home / "refs"
        self.manifests_folder = self.home / "manifests"
        """Manifests of ancestors whose data was not pulled."""
        self.trash_folder = self.home / "trash"
        self.locks = Locks(self.home / "locks")
        self.index = Index(self.home / "index.sqlite")
        self._refs = Refs(self.refs_folder)

    def __reduce__(self) -> tuple[type[Registry], tuple[Path]]:
        return Registry, (self.home,)

    # finding

    def find(self, key: str) -> Artifact | None:
        """The artifact of this full key, verified; None if it is not here. Raises DamagedArtifact naming the file."""
        if not is_key(key):
            raise RegistryError(f"{key!r} is no key: a key has 32 hexadecimal digits; use get() for names and prefixes")
        raw = self._read_raw(key)
        if raw is None:
            return None
        folder = self.artifacts_folder / key
        manifest_sha = hashlib.sha256(raw).hexdigest()
        known = self.index.verified(key)
        manifest = self._parse(key, raw, trusted=known is not None and known[0] == manifest_sha)
        try:
            files = dict(list_files(folder))
            if known != (manifest_sha, _stamp(files)):
                self._raise_first(self._damages(manifest, files))
                self.remember(manifest, manifest_sha, files)
        except NotPlain as error:
            raise DamagedArtifact(key, error.file, error.reason) from error
        except FileNotFoundError:
            if not folder.exists():  # removed by gc while we read
                return None
            raise
        return Artifact(key, manifest.digest, manifest.kind, folder, manifest)

    def get(self, name: str) -> Artifact:
        """The artifact of a ref, a full key or an unambiguous prefix of one (4 digits or more), verified.

        Raises UnknownArtifact naming the nearest refs, DamagedArtifact naming the file.
        """
        key = self.resolve(name)
        artifact = self.find(key)
        if artifact is None:
            place = f"ref {name!r} names {key}, whose data" if name != key else f"the data of {key}"
            raise UnknownArtifact(
                f"{place} is not under {self.artifacts_folder}: run its recipe, or pull it from a remote"
            )
        return artifact

    def resolve(self, name: str) -> str:
        """The full key that a ref, a key or an unambiguous prefix stands for. Raises UnknownArtifact."""
        if is_key(name):
            return name
        key = self._refs.read(name)
        if key is not None:
            return key
        matches = [each for each in self.keys() if each.startswith(name)] if len(name) >= 4 else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UnknownArtifact(
                f"{name!r} is the start of {len(matches)} keys: {', '.join(matches[:5])}; give more digits"
            )
        raise UnknownArtifact(f"no artifact, ref or key prefix {name!r} under {self.home}{self._advice(name)}")

    def keys(self) -> list[str]:
        """Keys of all published artifacts, sorted."""
        if not self.artifacts_folder.is_dir():
            return []
        return sorted(name for name in os.listdir(self.artifacts_folder) if is_key(name))  # noqa: PTH208

    def manifest(self, key: str) -> Manifest:
        """The checked manifest of an artifact, or of a pulled artifact's ancestor whose data is elsewhere; its files
        are not read. Raises UnknownArtifact, DamagedArtifact."""
        raw = self._read_raw(key)
        if raw is not None:
            return self._parse(key, raw)
        file = self.manifests_folder / f"{key}.json"
        try:
            return read_manifest(file.read_bytes(), key)
        except FileNotFoundError:
            raise UnknownArtifact(
                f"no artifact {key} under {self.home}: run its recipe, or pull it from a remote"
            ) from None
        except ValueError as error:
            raise DamagedArtifact(key, file, str(error), "delete the file and pull again") from error

    def artifacts(self) -> list[Manifest]:
        """Manifests of all published artifacts, oldest first. A damaged one is left out with a warning."""
        cached = self.index.manifests()
        found, fresh = [], []
        for key in self.keys():
            try:
                stamp = fingerprint((self.artifacts_folder / key / MANIFEST).stat())
                if cached.get(key, ("", b""))[0] == stamp:
                    found.append(read_manifest(cached[key][1], key, trusted=True))
                else:
                    manifest = self.manifest(key)
                    found.append(manifest)
                    fresh.append((key, stamp, manifest.render()))
            except (DamagedArtifact, UnknownArtifact, FileNotFoundError, ValueError) as error:
                _LOG.warning("left out of the list: %s", error)
        self.index.remember_manifests(fresh)
        return sorted(found, key=lambda manifest: (manifest.created, manifest.key))

    def lineage(self, name: str) -> list[Manifest]:
        """Manifests of everything an artifact (ref, key or prefix) was made from, ancestors first, itself last.

        Raises UnknownArtifact if an ancestor's manifest is not here.
        """
        found: dict[str, Manifest] = {}

        def inputs_of(key: str) -> list[str]:
            found[key] = self.manifest(key)
            return lineage.input_keys(found[key])

        return [found[key] for key in lineage.ancestors_first([self.resolve(name)], inputs_of)]

    def diff(self, left: str, right: str) -> dict[str, tuple[Any, Any]]:
        """{dotted field: (left, right)} of what differs between two artifacts (refs, keys or prefixes)."""
        return lineage.differences(self.manifest(self.resolve(left)), self.manifest(self.resolve(right)))

    def source_digest(self, path: Path | str) -> str:
        """Content digest of an outside file or folder, links followed; remembered by inode, size and times."""
        return digest_path(
            Path(path).expanduser().absolute(),
            lambda file, stamp: self.index.source(str(file), stamp),
            lambda file, stamp, sha256: self.index.remember_source(str(file), stamp, sha256),
        )

    # making

    def build(self, spec: Spec, on_wait: Callable[[], None] | None = None) -> AbstractContextManager[Build]:
        """Hold `spec`'s key for building; if another process builds it, call `on_wait` once and wait for it.

        `build.artifact` is set if somebody published it already; else fill `build.out` and call `build.publish`.
        Inputs are safe from gc while the block runs. Raises RegistryError before any work for a config that cannot be
        part of a key or an input that is gone, DiskFull for want of space inside the block.
        """
        return open_build(self, spec, on_wait)

    def tag(self, name: str, key: str, gate: str | None = None) -> None:
        """Let `name` stand for an artifact (full key, prefix or other ref); moves the ref if it is there.

        `gate`: who lets it move; from then on only a call that names one does. Raises RegistryError for others.
        """
        with naming_full_disk(self.refs_folder), self.locks.holding(GC, shared=True):
            key = self.resolve(key)
            self.manifest(key)
            if not (self.artifacts_folder / key).is_dir():
                raise UnknownArtifact(f"cannot tag {key} as {name!r}: only its manifest is here, not its data; pull it")
            self._refs.write(name, key, gate)

    def untag(self, name: str) -> None:
        """Remove a ref; the artifact stays until gc. Raises RegistryError if there is no such ref."""
        self._refs.remove(name)

    def refs(self) -> dict[str, str]:
        """name -> key of all refs."""
        return self._refs.all()

    # keeping

    def verify(self, keys: Iterable[str] | None = None) -> list[str]:
        """Read every byte of the artifacts of `keys` (default: all, and all refs). One line for each damage."""
        damages = []
        for key in self.keys() if keys is None else [self.resolve(key) for key in keys]:
            damages += self._verify_one(key)
        if keys is None:
            damages += self._verify_ancestors()
            dangling = {name: key for name, key in self.refs().items() if not (self.artifacts_folder / key).is_dir()}
            damages += [
                f"ref {name} names {key}, which is not here: pull it or untag it" for name, key in dangling.items()
            ]
        return damages

    def gc(self, min_age_seconds: float = 86400, dry_run: bool = False) -> list[str]:
        """Remove artifacts that no ref reaches, no running build uses and nobody touched for `min_age_seconds`; also
        staging folders of that age that nobody holds. Returns the keys removed, consumers before their inputs.

        Raises DamagedArtifact if a kept artifact's manifest cannot be read: what it needs is unknown then.
        """
        return gc.collect(self, min_age_seconds, dry_run)

    def push(self, name: str, url: str, lineage: bool = False, force: bool = False) -> None:
        """Copy an artifact, its ancestors' manifests and its ref to any fsspec URL. `lineage`: ancestors' data too.
        `force`: upload also what seems to be there."""
        remote.push(self, name, url, lineage, force)

    def pull(self, name: str, url: str, lineage: bool = False) -> Artifact:
        """Fetch an artifact by ref or key from any fsspec URL, verify it, publish it and tag it. `lineage`: its
        ancestors' data too, not only their manifests. Raises DamagedArtifact if the remote's copy is not whole."""
        return remote.pull(self, name, url, lineage)

    def reindex(self) -> None:
        """Rebuild index.sqlite from the manifests. What was verified must be verified again."""
        self.index.clear()
        self.artifacts()

    def remember(self, manifest: Manifest, manifest_sha256: str, files: Mapping[str, os.stat_result]) -> None:
        """Note that these files were verified; not if one changed so lately that a later change could look the same."""
        data = {path: status for path, status in files.items() if path != MANIFEST}
        if settled(data.values()):
            self.index.remember_verified(manifest.key, manifest_sha256, _stamp(files))

    # checking

    def _advice(self, name: str) -> str:
        """What to do about a name that nothing has: the nearest refs, or where to look."""
        if not self.keys():
            return ", where nothing is yet: run a recipe, or name another registry with --home or ACORN_HOME"
        return self._refs.hint(name) or "; `acorn artifacts ls` lists what is there"

    def _read_raw(self, key: str) -> bytes | None:
        folder = self.artifacts_folder / key
        for _ in range(2):  # twice: it may be published between looking for the file and for the folder
            try:
                raw = (folder / MANIFEST).read_bytes()
            except FileNotFoundError:
                if not folder.exists():
                    return None
            else:
                if len(raw) > MAX_BYTES:
                    raise DamagedArtifact(key, folder / MANIFEST, f"{len(raw)} bytes are too many for a manifest")
                return raw
        raise DamagedArtifact(key, folder / MANIFEST, "missing")

    def _parse(self, key: str, raw: bytes, trusted: bool = False) -> Manifest:
        try:
            return read_manifest(raw, key, trusted)
        except ValueError as error:
            raise DamagedArtifact(key, self.artifacts_folder / key / MANIFEST, str(error)) from error

    def _damages(self, manifest: Manifest, files: Mapping[str, os.stat_result]) -> list[DamagedArtifact]:
        folder = self.artifacts_folder / manifest.key
        expected: dict[str, FileEntry] = {**manifest.files, **manifest.records}
        found = {path: status.st_size for path, status in files.items() if path != MANIFEST}
        wrong = {path: "missing" for path in expected if path not in found}
        wrong |= {path: "not part of the artifact" for path in found if path not in expected}
        whole = []
        for path in sorted(found.keys() & expected.keys()):
            if found[path] != expected[path].size:
                wrong[path] = f"{found[path]} bytes instead of {expected[path].size}"
            else:
                whole.append(path)
        for path, entry in hash_files(folder, whole).items():
            if entry["sha256"] != expected[path].sha256:
                wrong[path] = f"content changed (sha256 {entry['sha256']}, published as {expected[path].sha256})"
        return [DamagedArtifact(manifest.key, folder / path, wrong[path]) for path in sorted(wrong)]

    def _verify_one(self, key: str) -> list[str]:
        folder = self.artifacts_folder / key
        try:
            raw = self._read_raw(key)
            if raw is None:
                return [f"artifact {key} is not here"]
            manifest = self._parse(key, raw)
            files = dict(list_files(folder))
            damages = self._damages(manifest, files)
        except RegistryError as error:
            return [f"artifact {key} is damaged: {error}" if isinstance(error, NotPlain) else str(error)]
        except FileNotFoundError:
            if not folder.exists():  # removed by gc while we read
                return []
            raise
        if not damages:
            self.remember(manifest, hashlib.sha256(raw).hexdigest(), files)
        return [str(damage) for damage in damages]

    def _verify_ancestors(self) -> list[str]:
        damages = []
        for file in sorted(self.manifests_folder.glob("*.json")):
            try:
                read_manifest(file.read_bytes(), file.stem)
            except ValueError as error:
                damages.append(f"{file} is damaged: {error}; delete the file and pull again")
        return damages

    @staticmethod
    def _raise_first(damages: list[DamagedArtifact]) -> None:
        if damages:
            raise damages[0]


def _stamp(files: Mapping[str, os.stat_result]) -> str:
    """One string that changes when a data file changes, comes or goes. The manifest is left out: it is read anyway."""
    return sha256_text("\n".join(f"{path}\t{fingerprint(files[path])}" for path in sorted(files) if path != MANIFEST))
