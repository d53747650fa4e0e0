"""`acorn push REF URL`: a release folder to a hub repository or to any fsspec URL.

A release is named by its SHA256SUMS, so that file goes last: who finds it finds everything. Everything is read back and
hashed, which also makes a push that was cut off go on where it stopped: what is there and right is not sent again.
Files at the URL that the release does not name are left alone.
"""

from __future__ import annotations

import hashlib
import posixpath
from argparse import Namespace
from pathlib import Path
from typing import Any

from acorn.launch import StepFailed
from export.release import SUMS
from registry import Registry

_CHUNK = 1 << 20
_HUB = "hf://"


class PushError(StepFailed):
    """A release that cannot be pushed, or does not arrive; says which file and what to do."""


def push(options: Namespace) -> int:
    """The command. Raises PushError and what the remote raises."""
    from rich.console import Console

    folder = find_release(options.ref, options.home)
    if options.url.startswith(_HUB):
        from export.hub import push_to_hub

        where = push_to_hub(folder, options.url.removeprefix(_HUB), private=options.private)
    else:
        where = push_to_url(folder, options.url)
    Console().print(f"{where} holds {len(read_sums(folder))} files and {SUMS}, all verified", soft_wrap=True)
    return 0


def find_release(ref: str, home: str | None) -> Path:
    """The release folder: an artifact of that kind, or a folder with a SHA256SUMS, whose files are checked."""
    path = Path(ref)
    if path.is_dir():
        folder = path
    else:
        artifact = Registry(home).get(ref)
        if artifact.kind != "release":
            raise PushError(
                f"{ref} is an artifact of kind {artifact.kind!r}; push publishes a 'release': add a release step to "
                f"the recipe, or copy it to another registry with `acorn artifacts push {ref} URL`"
            )
        folder = artifact.path
    sums = read_sums(folder)
    for name, expected in sums.items():
        if _hash_file(folder / name) != expected:
            raise PushError(
                f"{folder / name} is not what {SUMS} says it is; nothing was pushed: make the release again"
            )
    return folder


def read_sums(folder: Path) -> dict[str, str]:
    """name -> sha256 of SHA256SUMS. Raises PushError where there is none, or one that names files elsewhere."""
    path = folder / SUMS
    if not path.is_file():
        raise PushError(f"{folder} has no {SUMS}: it is no release folder; a `release` step makes one")
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not name or posixpath.basename(name) != name or not (folder / name).is_file():
            raise PushError(f"{path} names {name!r}, which is no file beside it")
        found[name] = digest
    return found


def push_to_url(folder: Path, url: str) -> str:
    """Copy the release to an fsspec URL, data first; returns the URL.

    Raises PushError for a kind of URL that is unknown or lacks its library, and for a file that arrives wrong.
    """
    from fsspec.core import url_to_fs
    from tqdm import tqdm

    try:
        fs, root = url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:  # fsspec says which package there is for it, or that there is none
        raise PushError(f"{url}: {error}") from error
    sums = read_sums(folder)
    own = (folder / SUMS).read_bytes()
    last = posixpath.join(root, SUMS)
    if fs.exists(last) and fs.cat_file(last) != own:  # another release: not complete until ours is
        fs.rm_file(last)
    fs.makedirs(root, exist_ok=True)
    for name, expected in tqdm(sums.items(), desc=f"pushing to {url}", unit="file", disable=None):
        _upload(fs, folder / name, posixpath.join(root, name), expected)
    _upload(fs, folder / SUMS, last, hashlib.sha256(own).hexdigest())
    return url


def _upload(fs: Any, source: Path, target: str, expected: str) -> None:
    if _is_there(fs, source, target, expected):
        return
    temporary = f"{target}.{expected[:16]}.part"  # the same name each time: what a cut-off push left is written over
    fs.put_file(str(source), temporary)
    fs.mv(temporary, target)
    if not _is_there(fs, source, target, expected):
        raise PushError(f"{target} did not arrive as it was sent; push again, and check that storage")


def _is_there(fs: Any, source: Path, target: str, expected: str) -> bool:
    if not fs.exists(target) or fs.size(target) != source.stat().st_size:
        return False
    digest = hashlib.sha256()
    with fs.open(target, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == expected


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
