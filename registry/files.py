"""Files that survive a kill and a power cut: durable writes, a strict listing, thorough removal."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry.errors import NotPlain

MANIFEST = "manifest.json"


# Ordinary names, matched at once: a cache hit checks every path of the artifact.
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._ -]{0,199}"
_ORDINARY = re.compile(rf"(?:{_SEGMENT}/){{0,9}}{_SEGMENT}")


def check_relative(path: str) -> str:
    """`path` if it is a plain relative POSIX path that stays inside its folder. Raises ValueError otherwise.

    Manifests come from remotes too, so this is what keeps a hostile one from writing outside the store.
    """
    if _ORDINARY.fullmatch(path):
        return path
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"path {path!r} is not a plain relative path")
    if "\\" in path or any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise ValueError(f"path {path!r} holds a backslash or a control character")
    try:
        if any(len(part.encode()) > 255 for part in parts) or len(path.encode()) > 3000:
            raise ValueError(f"path {path[:80]!r}... is too long")
    except UnicodeEncodeError:
        raise ValueError(f"path {path!r} is not valid UTF-8") from None
    return path


def list_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(relative path, lstat) of every regular file under `folder`. Raises NotPlain at a link, device, socket or fifo,
    and at a name a manifest cannot hold."""
    stack = [""]
    while stack:
        prefix = stack.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    stack.append(path + "/")
                elif stat.S_ISREG(status.st_mode):
                    yield _checked(folder, path), status
                else:
                    kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a device, socket or fifo"
                    raise NotPlain(folder / path, f"is {kind}", "an artifact holds plain files only: copy its content")


def _checked(folder: Path, path: str) -> str:
    try:
        return check_relative(path)
    except ValueError as error:
        raise NotPlain(folder / path, f"has a name no manifest can hold: {error}", "rename it") from error


def prune_empty_folders(folder: Path) -> None:
    """Remove folders under `folder` that hold nothing: a manifest lists files, so they could not travel."""
    for root, _, _ in os.walk(folder, topdown=False):
        if Path(root) != folder and not os.listdir(root):  # noqa: PTH208 - names only, no Path objects
            os.rmdir(root)  # noqa: PTH106


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents so that they outlive a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder under `folder`, and `folder` itself, children first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def write_bytes(path: Path, raw: bytes) -> None:
    """Replace `path` by `raw`: readers see the old file or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def remove_tree(folder: Path) -> None:
    """Remove `folder` and all in it, read-only folders included; no error if it is not there."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    if not folder.exists():
        return
    for root, names, _ in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if not path.is_symlink() and not path.stat().st_mode & stat.S_IWUSR:
                path.chmod(0o755)
    shutil.rmtree(folder)
