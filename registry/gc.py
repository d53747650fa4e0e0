"""Garbage collection: remove what nobody needs, and never what somebody does.

Needed is what refs reach with all its ancestors, what a running build holds or pinned (a lock says that it runs), and
what was published, hit or used within the last `min_age_seconds`: a finished step is tagged a moment later, not at
once. The decision falls under an exclusive lock that builds take shared while they register; what is doomed is first
renamed away, consumers before their inputs, so that a kill leaves nothing half there.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from registry.build import PINS
from registry.errors import DamagedArtifact, UnknownArtifact
from registry.files import remove_tree
from registry.keys import is_key
from registry.lineage import ancestors_first, input_keys
from registry.locks import GC

if TYPE_CHECKING:
    from registry.store import Registry


def collect(registry: Registry, min_age_seconds: float, dry_run: bool) -> list[str]:
    """Remove what is not needed: see `Registry.gc`."""
    with registry.locks.holding(GC):
        running = {name for name in registry.locks.held() if is_key(name)}
        present = set(registry.keys())
        kept = set(
            ancestors_first(_roots(registry, running, present, min_age_seconds), lambda key: _inputs(registry, key))
        )
        doomed = _consumers_first(registry, present - kept)
        if dry_run:
            return doomed
        for key in doomed:
            _discard(registry, registry.artifacts_folder / key)
        for folder in _stale_staging(registry, running, min_age_seconds):
            _discard(registry, folder)
        _tidy(registry, running, kept, min_age_seconds)
        registry.index.forget(doomed)
    with registry.locks.holding("trash.lock"):
        for folder in _children(registry.trash_folder):
            remove_tree(folder)
    return doomed


def _roots(registry: Registry, running: set[str], present: set[str], min_age_seconds: float) -> set[str]:
    pinned = {key for build in running for key in _pins(registry.staging_folder / build / PINS)}
    young = {key for key in present if _age(registry.artifacts_folder / key) < min_age_seconds}
    return {*registry.refs().values(), *running, *pinned, *young}


def _pins(file: Path) -> list[str]:
    try:
        return list(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return []  # not registered yet, so it waits for us; or just published, so its manifest names them


def _inputs(registry: Registry, key: str) -> list[str]:
    """Inputs of a kept artifact. One that is not here at all has none to keep; a damaged one stops the collection,
    because what it needs cannot be known."""
    try:
        return input_keys(registry.manifest(key))
    except UnknownArtifact:
        return []


def _consumers_first(registry: Registry, keys: set[str]) -> list[str]:
    ordered = ancestors_first(keys, lambda key: _known_inputs(registry, key))
    return [key for key in reversed(ordered) if key in keys]


def _known_inputs(registry: Registry, key: str) -> list[str]:
    try:
        return _inputs(registry, key)
    except DamagedArtifact:
        return []  # about to be removed: only the order depends on it


def _stale_staging(registry: Registry, running: set[str], min_age_seconds: float) -> list[Path]:
    return [
        folder
        for folder in _children(registry.staging_folder)
        if folder.name not in running and _youngest(folder) >= min_age_seconds
    ]


def _tidy(registry: Registry, running: set[str], kept: set[str], min_age_seconds: float) -> None:
    """Remove manifests, lock files and temporary ref files that belong to nothing any more."""
    for file in _children(registry.manifests_folder):
        if file.name.removesuffix(".json") not in kept:
            file.unlink()
    for file in _children(registry.locks.folder):
        if is_key(file.name) and file.name not in running:
            registry.locks.forget(file.name)
    for file in registry.refs_folder.rglob(".*.tmp"):
        if _age(file) >= min_age_seconds:
            file.unlink()


def _discard(registry: Registry, folder: Path) -> None:
    registry.trash_folder.mkdir(parents=True, exist_ok=True)
    os.rename(folder, registry.trash_folder / f"{folder.name}.{uuid.uuid4().hex}")  # noqa: PTH104


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _youngest(folder: Path) -> float:
    """Seconds since anything under `folder` last changed."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return min(_age(path) for path in (folder, *files))
