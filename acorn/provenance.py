"""What made an artifact besides its config: library versions and the state of acorn's own source."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "accelerate", "datasets", "trl", "nanotron", "distilabel"),
    *("datatrove", "lighteval", "deepspeed", "wandb", "gguf", "xllamacpp", "llama-cpp-python", "numpy", "acorn-lm"),
)


def library_versions() -> dict[str, str]:
    """Installed version of each library the stages stand on, and of Python."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def git_state() -> dict[str, Any]:
    """Commit of acorn's checkout and whether it has uncommitted changes; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    commit = _git(root, "rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))} if commit else {}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
