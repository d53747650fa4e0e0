"""Checkpoints of transformers' Trainer that are either whole or not there.

Trainer writes a checkpoint in place, and on resuming takes the newest folder by name: an empty `checkpoint-20` hides a
whole `checkpoint-10`, and a missing `optimizer.pt` silently restarts the optimizer. Here a checkpoint is written aside,
gets a manifest with a sha256 of every file, is synced to disk and renamed; only then are older ones dropped. Resuming
takes the newest one whose bytes all match. The price is one read of the checkpoint per save (about 1 GB/s a core).

Nothing else is ever loaded: the files come from this step's own scratch folder, match the manifest written with them,
and Trainer reads them with `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer

MANIFEST = "acorn.json"
KEEP = 2
"""Checkpoints kept: the newest, and the one before it in case a disk loses bits of the newest."""


@dataclass(frozen=True)
class Checkpoint:
    """What the manifest of a whole checkpoint says."""

    path: Path
    step: int
    tokens: int
    """Tokens seen so far, over all processes; Trainer itself forgets them on resuming."""
    layout: str
    """How the weights are spread: a `deepspeed-8` checkpoint cannot be read by 4 processes."""


class AtomicCheckpoints(Trainer):  # type: ignore[misc]
    """Mixin for a TRL trainer: saves through a folder aside and keeps the newest `KEEP`."""

    @property
    def steps_between_states(self) -> int:
        """Optimizer steps between two that a checkpoint can hold: more where samples are kept for several steps."""
        return 1

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer's own method, past TRL's: TRL's writes a model card with the name of the scratch folder each time.
        root, aside = Path(self.args.output_dir), Path(self.args.output_dir) / "saving"
        self.args.output_dir = str(aside)
        try:
            Trainer._save_checkpoint(self, model, trial)
        finally:
            self.args.output_dir = str(root)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            publish(aside / name, root / name, self.state.global_step, int(self._total_train_tokens), self.layout)
            shutil.rmtree(aside)
            rotate(root)
        self.accelerator.wait_for_everyone()

    @property
    def layout(self) -> str:
        if self.is_deepspeed_enabled:
            return f"deepspeed-{self.args.world_size}"
        return "fsdp" if self.is_fsdp_enabled else "full"


def publish(written: Path, final: Path, step: int, tokens: int, layout: str) -> None:
    """Seal the folder `written` with a manifest and move it to `final` in one rename, all synced to disk."""
    files = {str(path.relative_to(written)): _sha256(path) for path in _files(written)}
    manifest = {"step": step, "tokens": tokens, "layout": layout, "files": files}
    (written / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*_files(written), *(path for path in written.rglob("*") if path.is_dir()), written):
        _sync(path)
    if final.exists():  # left damaged by an earlier attempt: a whole one would have been resumed from
        shutil.rmtree(final)
    written.rename(final)
    _sync(final.parent)


def newest_whole(root: Path, layout: str) -> Checkpoint | None:
    """The newest checkpoint under `root` with every file as its manifest says; says on stderr which ones it passes."""
    for path in sorted(root.glob("checkpoint-*"), key=_step, reverse=True):
        problem = _damage(path)
        if problem is None:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest.pop("layout") == layout:
                del manifest["files"]
                return Checkpoint(path=path, layout=layout, **manifest)
            problem = f"it was written under another launch configuration than `{layout}`"
        print(f"checkpoint {path.name} is passed over: {problem}", file=sys.stderr)
    return None


def rotate(root: Path) -> None:
    """Drop all but the newest `KEEP` checkpoints."""
    for path in sorted(root.glob("checkpoint-*"), key=_step, reverse=True)[KEEP:]:
        shutil.rmtree(path)


def _damage(path: Path) -> str | None:
    manifest = path / MANIFEST
    if not manifest.is_file():
        return "it has no manifest, so it was never finished"
    try:
        expected: dict[str, str] = json.loads(manifest.read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    for name, digest in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} is not the file that was saved"
    return None


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
