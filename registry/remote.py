"""Remotes: a registry's artifacts at any fsspec URL (s3://, gs://, sftp://, a mounted disk).

    <url>/artifacts/<key>/...    files, and manifest.json once all of them are there
    <url>/manifests/<key>.json   manifests of ancestors, with or without their data
    <url>/refs/<name>.json       {"name", "key"}, written last

A remote is not trusted. A manifest from it must prove itself and may name only paths inside its folder; every file is
hashed as it arrives, no more bytes are read than the manifest promises, and nothing is published before all is right.
What a remote can still do is offer another, consistent artifact under a name: pull by key where that matters.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.build import place, seal, write_pins
from registry.digest import hash_file
from registry.errors import DamagedArtifact, DiskFull, RegistryError, UnknownArtifact, naming_full_disk
from registry.files import MANIFEST, list_files, remove_tree, write_bytes
from registry.keys import is_key
from registry.lineage import ancestors_first, input_keys
from registry.locks import GC
from registry.manifest import MAX_BYTES, FileEntry, Manifest, read_manifest
from registry.refs import check_name

if TYPE_CHECKING:
    from registry.store import Artifact, Registry

_CHUNK = 1 << 20


class _Remote:
    """Small files and paths at one URL. Raises RegistryError for a kind of URL that fsspec cannot open here."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            self.fs, self.root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # fsspec says which package there is for it, or that there is none
            raise RegistryError(f"{url}: {error}") from error

    def path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def read(self, *parts: str) -> bytes | None:
        """A small file's bytes; None if it is not there. Raises RegistryError if it is no small file."""
        path = self.path(*parts)
        try:
            with self.fs.open(path, "rb") as file:
                raw: bytes = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(raw) > MAX_BYTES:
            raise RegistryError(f"{path} on {self.url} is larger than {MAX_BYTES >> 20} MiB: no manifest of ours")
        return raw

    def write(self, raw: bytes, *parts: str) -> None:
        """Replace a small file; readers see the old one or the new one where the file system can rename."""
        path = self.path(*parts)
        temporary = f"{path}.{uuid.uuid4().hex}.part"
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        self.fs.pipe_file(temporary, raw)
        self.fs.mv(temporary, path)

    def upload(self, file: Path, size: int, force: bool, *parts: str) -> None:
        path = self.path(*parts)
        if not force and self.fs.exists(path) and self.fs.size(path) == size:
            return
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        self.fs.put_file(str(file), path)

    def manifest(self, key: str, *parts: str) -> Manifest | None:
        """A checked manifest; None if it is not there. Raises DamagedArtifact."""
        raw = self.read(*parts)
        if raw is None:
            return None
        try:
            return read_manifest(raw, key)
        except ValueError as error:
            file = Path(self.url, *parts)
            raise DamagedArtifact(key, file, str(error), "nothing was pulled; push it again with force") from error


def push(registry: Registry, name: str, url: str, lineage: bool, force: bool) -> None:
    """See `Registry.push`."""
    remote = _Remote(url)
    artifact = registry.get(name)
    family = registry.lineage(artifact.key)
    for manifest in family:
        if lineage or manifest.key == artifact.key:
            _push_one(registry.get(manifest.key), remote, force)
        if manifest.key != artifact.key:
            remote.write(manifest.render(), "manifests", f"{manifest.key}.json")
    if name in registry.refs():
        remote.write(json.dumps({"name": name, "key": artifact.key}).encode(), "refs", f"{name}.json")


def _push_one(artifact: Artifact, remote: _Remote, force: bool) -> None:
    there = None if force else remote.read("artifacts", artifact.key, MANIFEST)
    raw = artifact.manifest.render()
    if there == raw:
        return
    if there is not None:
        raise RegistryError(
            f"{remote.url} holds another build of {artifact.key}; pull that one, or push with force to replace it"
        )
    if force:  # not complete until the manifest is back
        _remove(remote, "artifacts", artifact.key, MANIFEST)
    files = {**artifact.manifest.files, **artifact.manifest.records}
    for path, entry in _progress(files, f"pushing {artifact.key[:12]}"):
        remote.upload(artifact.path / path, entry.size, force, "artifacts", artifact.key, path)
    remote.write(raw, "artifacts", artifact.key, MANIFEST)


def _remove(remote: _Remote, *parts: str) -> None:
    path = remote.path(*parts)
    if remote.fs.exists(path):
        remote.fs.rm_file(path)


def pull(registry: Registry, name: str, url: str, lineage: bool) -> Artifact:
    """See `Registry.pull`."""
    remote = _Remote(url)
    key = _remote_key(remote, name)
    manifest = remote.manifest(key, "artifacts", key, MANIFEST)
    if manifest is None:
        raise UnknownArtifact(f"{remote.url} has no artifact {key}, or its push did not finish; push it again")
    family = _family(registry, remote, manifest)
    ancestors = [ancestor for ancestor in family if ancestor.key != key]
    staging = registry.staging_folder / key
    # Held until the ref is written, with all ancestors pinned: gc takes nothing of what is still arriving. Locks are
    # taken from consumer to input, so two pulls cannot wait for each other.
    with naming_full_disk(staging), registry.locks.holding(key):
        with registry.locks.holding(GC, shared=True):
            write_pins(staging, (ancestor.key for ancestor in ancestors))
            for ancestor in ancestors:
                write_bytes(registry.manifests_folder / f"{ancestor.key}.json", ancestor.render())
        for ancestor in ancestors if lineage else []:
            _pull_ancestor(registry, remote, ancestor.key)
        artifact = _pull_one(registry, remote, manifest)
        if not is_key(name):
            registry.tag(name, key)
        remove_tree(staging)
    return artifact


def _pull_ancestor(registry: Registry, remote: _Remote, key: str) -> None:
    manifest = remote.manifest(key, "artifacts", key, MANIFEST)
    if manifest is None:
        raise UnknownArtifact(f"{remote.url} does not hold the data of {key}; push it there with its lineage")
    with registry.locks.holding(key):
        _pull_one(registry, remote, manifest)
        remove_tree(registry.staging_folder / key)


def _remote_key(remote: _Remote, name: str) -> str:
    if is_key(name):
        return name
    raw = remote.read("refs", f"{check_name(name)}.json")
    if raw is None:
        raise UnknownArtifact(f"{remote.url} has no ref {name!r}: push it there, or pull by full key")
    try:
        key = json.loads(raw)["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"ref {name!r} on {remote.url} is damaged ({error}); push it again") from error
    if not isinstance(key, str) or not is_key(key):
        raise RegistryError(f"ref {name!r} on {remote.url} holds {key!r}, which is no key; nothing was pulled")
    return key


def _family(registry: Registry, remote: _Remote, manifest: Manifest) -> list[Manifest]:
    """`manifest` and those of all its ancestors, ancestors first; from the remote, else from here."""
    found = {manifest.key: manifest}

    def inputs_of(key: str) -> list[str]:
        if key not in found:
            theirs = remote.manifest(key, "manifests", f"{key}.json")
            found[key] = theirs if theirs is not None else registry.manifest(key)
        return input_keys(found[key])

    return [found[key] for key in ancestors_first([manifest.key], inputs_of)]


def _pull_one(registry: Registry, remote: _Remote, manifest: Manifest) -> Artifact:
    """Fetch one artifact, unless the same is here. The caller holds its key."""
    artifact = registry.find(manifest.key)
    if artifact is None:
        return _fetch(registry, remote, manifest)
    if artifact.digest != manifest.digest:
        raise RegistryError(
            f"{artifact.path} is another build of the same key (digest {artifact.digest[:12]}, on {remote.url} "
            f"{manifest.digest[:12]}); delete that folder to take the remote's"
        )
    return artifact


def _fetch(registry: Registry, remote: _Remote, manifest: Manifest) -> Artifact:
    """Download into staging, keeping what an interrupted pull left whole, verify and publish."""
    folder = registry.staging_folder / manifest.key / "pull"
    folder.mkdir(parents=True, exist_ok=True)
    expected = {**manifest.files, **manifest.records}
    for path, _ in list(list_files(folder)):
        if path not in expected:
            (folder / path).unlink()
    if shutil.disk_usage(folder).free < manifest.size:
        raise DiskFull(folder, manifest.size)
    for path, entry in _progress(expected, f"pulling {manifest.key[:12]}"):
        _fetch_file(remote, manifest.key, path, entry, folder / path)
    files, records = seal(folder)
    assert files == {path: entry.model_dump() for path, entry in manifest.files.items()}
    assert records == {path: entry.model_dump() for path, entry in manifest.records.items()}
    return place(registry, folder, manifest)


def _fetch_file(remote: _Remote, key: str, path: str, entry: FileEntry, target: Path) -> None:
    if target.is_file() and hash_file(target) == entry.model_dump():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    where = Path(remote.url, "artifacts", key, path)
    remedy = "nothing was published; push it again with force from a whole registry"
    digest, size = hashlib.sha256(), 0
    try:
        with remote.fs.open(remote.path("artifacts", key, path), "rb") as source, target.open("wb") as file:
            while size <= entry.size and (chunk := source.read(_CHUNK)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        raise DamagedArtifact(key, where, "missing on the remote", remedy) from None
    if size != entry.size or digest.hexdigest() != entry.sha256:
        target.unlink()
        wrong = f"{size} bytes instead of {entry.size}" if size != entry.size else "content changed"
        raise DamagedArtifact(key, where, f"{wrong} on the remote", remedy)


def _progress(files: dict[str, FileEntry], title: str) -> Any:
    from tqdm import tqdm

    return tqdm(sorted(files.items()), desc=title, unit="file", disable=None)
