"""`acorn search REF --prompt ...`: a finished model, thinking about one problem."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from acorn.launch import StepFailed
from registry import Registry, UnknownArtifact

EXPORTS = ("gguf", "release")
"""Kinds of artifacts that are made of a `model` and hold the same one."""


def think(
    registry: Registry, model: str, prm: str | None, prompt: str, method: str, options: dict[str, Any], **limits: Any
) -> bool:
    """Search and print; whether a solution was found.

    `model` and `prm` are refs, keys or local folders. Raises FileNotFoundError for neither, StepFailed for a method,
    option or limit that is none.
    """
    folder = model_folder(registry, model)
    verifier = model_folder(registry, prm) if prm else trained_verifier(registry, model)
    solve = import_module("search.show").solve
    try:
        return solve(folder, verifier, prompt, method, options=options, **limits).chosen is not None
    except ValueError as error:
        raise StepFailed(str(error)) from error


def model_folder(registry: Registry, name: str) -> Path:
    """The folder of a model: `name` itself where it is one, else the artifact's of that ref or key."""
    if (Path(name) / "config.json").exists():
        return Path(name)
    try:
        return registry.get(name).path
    except UnknownArtifact as error:
        raise FileNotFoundError(f"{error} ({name} is no folder with a config.json either)") from error


def trained_verifier(registry: Registry, model: str) -> Path | None:
    """The newest process reward model that was trained on samples of `model`, else one of the same tokenizer.

    An export stands for the model that it was made of. Raises UnknownArtifact for what the registry does not know.
    """
    if (Path(model) / "config.json").exists():
        return None
    found = registry.get(model).manifest
    while found.kind in EXPORTS:
        found = registry.manifest(found.inputs["model"].key)
    own = found.key
    tokenizers = {one.key for one in registry.lineage(own) if one.kind == "tokenizer"}
    fitting: Path | None = None
    for one in reversed([manifest for manifest in registry.artifacts() if manifest.kind == "prm"]):
        ancestors = {ancestor.key for ancestor in registry.lineage(one.key)}
        if own in ancestors:
            return registry.get(one.key).path
        if fitting is None and ancestors & tokenizers:
            fitting = registry.get(one.key).path
    return fitting
