"""A release as a repository on the Hugging Face hub: one commit, so no order is needed; what the hub holds of large
files already is not sent again. Afterwards the hub's own hashes are compared with SHA256SUMS."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from export.publish import PushError, read_sums
from export.release import SUMS


def push_to_hub(folder: Path, target: str, private: bool) -> str:
    """Upload to `owner/name` or `owner/name@revision`, made if it is not there; returns its address.

    Credentials are huggingface_hub's own (`hf auth login`, or HF_TOKEN). Raises PushError for what the hub refuses, and
    for a file that differs.
    """
    # HTTPError is its HTTP library's, by whatever name that goes: the network's errors, and the hub's own.
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    repo, _, revision = target.strip("/").partition("@")
    if repo.count("/") != 1:
        raise PushError(f"hf://{target} names no repository: write hf://owner/name, or hf://owner/name@revision")
    names = [*read_sums(folder), SUMS]
    try:
        commit, there = _commit(folder, names, repo, revision, private)
    except (HTTPError, HFValidationError, OSError) as error:
        raise PushError(
            f"hf://{target}: {error}. A push needs the network, and a token that may write to {repo.split('/')[0]}: "
            "`hf auth login`, or HF_TOKEN"
        ) from error
    _verify(folder, names, there)
    return f"https://huggingface.co/{repo}/tree/{commit}"


def _commit(folder: Path, names: list[str], repo: str, revision: str, private: bool) -> tuple[str, dict[str, Any]]:
    """The commit's id, and name -> what the hub then says of each file."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    if revision:
        api.create_branch(repo, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision or None,
        allow_patterns=names,
        commit_message="Release, with its proof of parity",
    )
    there = api.get_paths_info(repo, names, revision=commit.oid)
    return commit.oid, {entry.path: entry for entry in there}


def _verify(folder: Path, names: list[str], there: dict[str, Any]) -> None:
    sums = read_sums(folder)
    for name in names:
        entry = there.get(name)
        if entry is None:
            raise PushError(f"the hub does not list {name}; push again")
        if entry.lfs and name in sums:  # SHA256SUMS itself is in no sums
            same = entry.lfs.sha256 == sums[name]
        else:
            same = entry.blob_id == _git_blob((folder / name).read_bytes())
        if not same:
            raise PushError(f"{name} on the hub is not what was sent; push again")


def _git_blob(raw: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
