"""How a model came about, out of the manifests of everything that it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acorn.gguf import ORIGIN
from registry import Manifest, Registry

LIBRARIES = {
    "pretrain": "nanotron",
    "hub_model": "made elsewhere",
    "chat_data": "distilabel",
    "preference_pairs": "distilabel",
    "sft": "TRL",
    "dpo": "TRL",
    "tokenizer": "tokenizers",
    "tokens": "tokenizers",
}


DATA = ("corpus", "chat", "preferences")
"""Kinds of artifacts that are data; the `path` in a config of theirs may be a data set's on the hub."""


@dataclass(frozen=True)
class History:
    """`steps`: manifests, inputs before what was made of them. Empty for a folder that is no artifact.

    `origins`: for models that began as a GGUF file, what their `origin.json` says of it.
    """

    steps: tuple[Manifest, ...] = ()
    origins: tuple[dict[str, Any], ...] = ()

    @property
    def licenses(self) -> list[str]:
        """Licences of all data."""
        return sorted({license for step in self.steps for license in step.licenses})

    @property
    def hub_models(self) -> list[str]:
        """Hub ids of the models that it began from."""
        paths = (str(step.config.get("path", "")) for step in self.steps if step.stage == "hub_model")
        found = ("/".join(path.split("/")[:2]) if path.endswith(".gguf") else path for path in paths)
        return sorted({name for name in found if _is_hub_id(name)})

    @property
    def hub_datasets(self) -> list[str]:
        """Hub ids of the data that it was made from."""
        paths = (path for step in self.steps if step.kind in DATA for path in _paths(step.config))
        return sorted({path for path in paths if _is_hub_id(path)})


def read_history(folders: Iterable[Path]) -> History:
    """The history of artifact folders, each step once."""
    found: dict[str, Manifest] = {}
    origins: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if (folder / "manifest.json").is_file() and folder.parent.name == "artifacts":
            for step in Registry(folder.parent.parent).lineage(folder.name):
                found.setdefault(step.key, step)
                if (path := folder.parent / step.key / ORIGIN).is_file():
                    origins[step.key] = json.loads(path.read_text(encoding="utf-8"))
        elif (folder / ORIGIN).is_file():
            origins[str(folder)] = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return History(tuple(found.values()), tuple(origins.values()))


def input_digests(folder: Path) -> dict[str, str]:
    """role -> digest of what the artifact in `folder` was made from; empty for a folder that is no artifact."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    return {role: entry["digest"] for role, entry in json.loads(path.read_text(encoding="utf-8"))["inputs"].items()}


def _paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("path"), str):
            yield config["path"]
        for value in config.values():
            yield from _paths(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _paths(value)


def _is_hub_id(path: str) -> bool:
    """`owner/name`: local paths are digests in a manifest."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~")) and ":" not in path
