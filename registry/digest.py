"""Digests: what an artifact *is*.

A file's digest is its sha256. A folder's is the Merkle root over its files: sha256 of the canonical JSON of
{relative path: {"sha256", "size"}}, so it can be recomputed from the manifest alone, and names, not times or modes,
count. In an artifact `manifest.json` and what lies under `logs/` are left out of it.

Hashing a file costs 0.5 to 1.5 GB/s and core (hashlib drops the GIL, so files are hashed by a few threads); what was
hashed once is remembered by inode, size, mtime and ctime (`fingerprint`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from registry.errors import RegistryError
from registry.files import MANIFEST, list_files
from registry.keys import canonical_json, sha256_text

RECORDS = "logs/"
"""Files under this folder are recorded and verified, but are no part of the digest: timings differ run to run."""
# A file changed twice within one kernel clock tick (4 to 10 ms) keeps its timestamps, so a digest is remembered only
# for files that had been left alone for this long when they were read.
SETTLED_NS = 50_000_000
_WORKERS = min(8, os.cpu_count() or 1)
_PROGRESS_BYTES = 2 << 30

Entry = dict[str, str | int]
"""`{"sha256": hex, "size": bytes}`"""


def merkle(files: Mapping[str, Mapping[str, str | int]]) -> str:
    """The digest of a folder that holds `files`: {relative path: {"sha256", "size"}}."""
    return sha256_text(canonical_json(files))


def hash_file(path: Path) -> Entry:
    """`{"sha256", "size"}` of one file's content."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "size": file.tell()}


def hash_files(folder: Path, paths: Iterable[str]) -> dict[str, Entry]:
    """{path: {"sha256", "size"}} of the files at `paths` under `folder`, hashed by several threads."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_WORKERS) as pool:
        entries = pool.map(lambda path: hash_file(folder / path), ordered)
        return dict(zip(ordered, _with_progress(entries, folder, ordered), strict=True))


def _with_progress(entries: Iterable[Entry], folder: Path, paths: list[str]) -> Iterable[Entry]:
    if sum((folder / path).stat().st_size for path in paths) < _PROGRESS_BYTES:
        return entries
    from tqdm import tqdm

    return tqdm(entries, total=len(paths), desc=f"hashing {folder.name[:12]}", unit="file")


def digest_folder(folder: Path) -> str:
    """The digest `folder` has, or would have, as an artifact. Raises RegistryError at links and special files."""
    names = [path for path, _ in list_files(folder) if path != MANIFEST and not path.startswith(RECORDS)]
    return merkle(hash_files(folder, names))


def fingerprint(status: os.stat_result) -> str:
    """Changes when the file's content does; cheap. ctime cannot be set back by a program, mtime can."""
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def settled(statuses: Iterable[os.stat_result]) -> bool:
    """Whether no file changed so lately that another change could hide behind the same timestamps."""
    newest = max((max(status.st_mtime_ns, status.st_ctime_ns) for status in statuses), default=0)
    return newest < time.time_ns() - SETTLED_NS


def digest_path(path: Path, recall: Callable[[Path, str], str | None], store: Callable[[Path, str, str], None]) -> str:
    """Content digest of an outside file or folder, links followed (a downloaded snapshot is a folder of links).

    A file's own name and place do not count, nor do a folder's; the names inside a folder do, hidden ones included.
    `recall(path, fingerprint)` and `store(path, fingerprint, sha256)` remember files between calls.
    Raises RegistryError if nothing is there or something is neither file nor folder.
    """
    if path.is_file():
        return str(_remembered(path, recall, store)["sha256"])
    if not path.is_dir():
        raise RegistryError(f"no file or folder at {path}: check the path (relative ones start at {Path.cwd()})")
    found = sorted(_outside_files(path))
    with ThreadPoolExecutor(_WORKERS) as pool:
        entries = pool.map(lambda name: _remembered(path / name, recall, store), found)
        return merkle(dict(zip(found, entries, strict=True)))


def _outside_files(folder: Path) -> Iterable[str]:
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above: walk each folder once
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in names:
            file = Path(root, name)
            if not file.is_file():
                raise RegistryError(
                    f"{file} is a broken link or no plain file: remove it or point to the files themselves"
                )
            yield file.relative_to(folder).as_posix()


def _remembered(
    path: Path, recall: Callable[[Path, str], str | None], store: Callable[[Path, str, str], None]
) -> Entry:
    status = path.stat()
    known = recall(path, fingerprint(status))
    if known is not None:
        return {"sha256": known, "size": status.st_size}
    entry = hash_file(path)
    if settled([status]) and fingerprint(path.stat()) == fingerprint(status):
        store(path, fingerprint(status), str(entry["sha256"]))
    return entry
