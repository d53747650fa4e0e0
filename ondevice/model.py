"""Which GGUF file a command runs, and with how much context.

A model is named by a file, a folder, a ref or a key of the registry (of a `gguf` or a `release`); a `model` artifact
stands for the newest export made of it. Without a name it is the newest `gguf` artifact of the registry. The registry
is imported only if it is asked (0.1 s).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.adapters import find_gguf, is_named
from engine.header import Header
from engine.limits import ram

if TYPE_CHECKING:
    from registry import Registry
    from registry.manifest import Manifest

MOST_CONTEXT = 16_384
"""Tokens of context unless more are asked for: llama.cpp writes zeros over the whole cache before it answers."""
MEMORY_SHARE = 4
"""The cache takes at most one part in so many of the free memory."""
_EXPORT = "export a model first (`acorn export FOLDER`, or a recipe's gguf step), or give --model FILE.gguf"


class NoModel(FileNotFoundError):
    """No GGUF under the name that was given; the message says what to do."""


@dataclass(frozen=True)
class Found:
    """A GGUF file, and the name it goes by."""

    path: Path
    name: str


def find_model(name: str | None, kind: str | None, home: str | None) -> Found:
    """The file for `--model NAME --type KIND`. Raises NoModel, or ValueError where it is not clear which file."""
    if name is not None and (path := Path(name).expanduser()).exists():
        return Found(_file(path, kind), name)
    from registry import Registry, RegistryError

    try:
        return _find_artifact(Registry(home), name, kind)
    except RegistryError as error:
        raise NoModel(f"{error} ({name} is no file or folder either)" if name else str(error)) from error


def _find_artifact(registry: Registry, name: str | None, kind: str | None) -> Found:
    artifact = registry.get(_newest_export(registry) if name is None else name)
    if artifact.kind == "model":
        artifact = registry.get(_newest_export(registry, artifact.key, name))
    if artifact.kind not in ("gguf", "release"):
        raise NoModel(f"{name} is a {artifact.kind}, which answers nothing: {_EXPORT}")
    refs = [ref for ref, named in registry.refs().items() if named == artifact.key]
    return Found(_file(artifact.path, kind), refs[0] if refs else artifact.key)


def _newest_export(registry: Registry, model: str | None = None, name: str | None = None) -> str:
    exports: list[Manifest] = [one for one in registry.artifacts() if one.kind == "gguf"]
    if model is not None:
        exports = [one for one in exports if any(entry.key == model for entry in one.inputs.values())]
    if not exports:
        what = f"nothing made of the model {name}" if model is not None else "no gguf artifact"
        raise NoModel(f"{what} is under {registry.home}: {_EXPORT}")
    return exports[-1].key


def _file(path: Path, kind: str | None) -> Path:
    if kind is not None and path.is_dir():
        named = [file for file in sorted(path.glob("*.gguf")) if is_named(file, kind)]
        if not named:
            there = ", ".join(file.name for file in sorted(path.glob("*.gguf"))) or "no .gguf file"
            raise NoModel(f"--type {kind}: {path} has {there}")
        return named[0]
    found = find_gguf(path)
    if found is None:
        raise NoModel(f"{path} holds no .gguf file: {_EXPORT}")
    return found


def choose_context(header: Header, asked: int | None) -> int:
    """Tokens of context: what was asked for, else the model's own as far as memory and MOST_CONTEXT allow.

    Raises ValueError if more is asked for than the model was trained on.
    """
    if asked is not None:
        if not 0 < asked <= header.context:
            raise ValueError(f"--context {asked}: this model takes 1 to {header.context} tokens")
        return asked
    fitting = ram().free // MEMORY_SHARE // max(1, header.cache_bytes) // 256 * 256
    return max(min(256, header.context), min(header.context, MOST_CONTEXT, fitting))
