"""From a recipe's step to the registry's key: canonical identity, digests of outside data, input artifacts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from acorn.recipe import Recipe, Step
from acorn.stage import GATE, TEST_KINDS, Ancestor, SourceMark
from registry import Artifact, Manifest, Registry, Spec

_LOCAL = re.compile(r"^(/|\./|\.\./|~)|\.(txt|md|jsonl|json|gz|parquet|jinja|csv)$")


class MissingInput(Exception):
    """A step cannot be resolved: something it needs is not in the registry or on the disk."""


@dataclass
class Resolved:
    """A step whose key is known."""

    step: Step
    spec: Spec
    ancestors: tuple[Ancestor, ...] = ()

    @property
    def key(self) -> str:
        return self.spec.key


def resolve(step: Step, inputs: dict[str, Artifact], registry: Registry) -> Resolved:
    """The build spec of `step` given its input artifacts. Raises MissingInput for a local source that is absent."""
    config, sources = canonical_identity(step.identity, registry.source_digest)
    if step.identity.keeps_out_tests:
        ancestors, found = find_ancestors(TEST_KINDS, inputs, registry)
        own = {artifact.digest for artifact in inputs.values()}
        ancestors = tuple(one for one in ancestors if one.digest not in own)
        found = {role: one for role, one in found.items() if one.digest not in own}
    else:
        ancestors, found = find_ancestors(step.identity.ancestor_kinds, inputs, registry)
    spec = Spec(
        stage=step.stage.name,
        version=step.stage.version,
        kind=step.stage.output,
        config=config,
        execution=step.execution.model_dump(mode="json"),
        inputs={**inputs, **found},
        sources=sources,
    )
    return Resolved(step, spec, ancestors)


def find_ancestors(
    kinds: tuple[str, ...], inputs: dict[str, Artifact], registry: Registry
) -> tuple[tuple[Ancestor, ...], dict[str, Artifact]]:
    """What the inputs were made from, as far as it is of these kinds; and those that are here as inputs of the step,
    under a role that names their digest: an equal rebuild changes no key."""
    if not kinds:
        return (), {}
    origins: dict[str, tuple[str, str, str]] = {}
    roles: dict[str, set[str]] = {}
    made_into: dict[str, set[str]] = {}
    for role, artifact in inputs.items():
        for child, parent in _descent(artifact.manifest, registry):
            if parent.kind in kinds:
                found = (parent.kind, parent.stage, parent.key)
                origins[parent.digest] = min(origins.get(parent.digest, found), found)
                roles.setdefault(parent.digest, set()).add(role)
                made_into.setdefault(parent.digest, set()).add(child.kind)
    here = {digest: registry.find(key) for digest, (_, _, key) in sorted(origins.items())}
    ancestors = tuple(
        Ancestor(
            *(*origins[digest][:2], digest, one.path if one else None),
            *(tuple(sorted(roles[digest])), tuple(sorted(made_into[digest]))),
        )
        for digest, one in here.items()
    )
    return ancestors, {f"ancestor {digest[:16]}": one for digest, one in here.items() if one}


def _descent(artifact: Manifest, registry: Registry) -> Iterator[tuple[Manifest, Manifest]]:
    """Every (artifact, one of its inputs) in a lineage. A gate lets something pass, it passes nothing on."""
    known = {artifact.key: artifact}
    waiting = [artifact]
    while waiting:
        child = waiting.pop()
        for role, entry in child.inputs.items():
            if role == GATE:
                continue
            if entry.key not in known:
                known[entry.key] = registry.manifest(entry.key)
                waiting.append(known[entry.key])
            yield child, known[entry.key]


def find_inputs(
    recipe: Recipe, step: Step, made: dict[str, Artifact | None], registry: Registry
) -> dict[str, Artifact] | str:
    """Input artifacts by role, or the name of the first input that is not there yet."""
    found: dict[str, Artifact] = {}
    for role, source in step.inputs.items():
        if source.startswith("@") and source.endswith("?") and source[1:-1] not in registry.refs():
            continue  # `@release?`: there was none yet
        artifact = registry.get(source[1:].rstrip("?")) if source.startswith("@") else made.get(source)
        if artifact is None:
            return source
        if source.startswith("@") and artifact.kind not in (wanted := step.stage.kinds_of(role)):
            where = recipe.where(("steps", step.name, "inputs", role))
            raise MissingInput(
                f"{where}: input '{role}' needs a {' or '.join(wanted)}, but {source} is a {artifact.kind}"
            )
        found[role] = artifact
    return found


def canonical_identity(identity: BaseModel, digest: Callable[[str], str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Identity config as plain data in which a local source stands as its content's digest, and `{field: path}`.

    A source that is no local path is a hub id and stays as it is.
    """
    config = identity.model_dump(mode="json")
    sources: dict[str, str] = {}
    for path, value in source_fields(identity):
        local = Path(value).expanduser()
        if local.exists():
            sources[".".join(map(str, path))] = value
            # A file's suffix says how it is read: the same bytes as .txt and as .jsonl are two inputs.
            suffix = "".join(local.suffixes[-2 if local.suffix == ".gz" else -1 :]) if local.is_file() else ""
            _put(config, path, f"sha256:{digest(str(local))}{suffix}")
        elif _LOCAL.search(value):
            raise MissingInput(f"{'.'.join(map(str, path))}: no such file or folder: {value}")
    return config, sources


def source_fields(model: BaseModel, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Path and value of every `Source` field in a config, through nested models, lists and mappings."""
    for name, info in type(model).model_fields.items():
        marked = any(isinstance(mark, SourceMark) for mark in info.metadata) or _marks(info.annotation)
        yield from _walk(getattr(model, name), (*at, name), marked)


def _walk(value: Any, at: tuple[str | int, ...], marked: bool) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, BaseModel):
        yield from source_fields(value, at)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, (*at, index), marked)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, (*at, key), marked)
    elif marked and isinstance(value, str):
        yield at, value


def _marks(annotation: Any) -> bool:
    """Whether `Source` stands somewhere inside an annotation such as `list[Source] | None`."""
    if any(isinstance(mark, SourceMark) for mark in getattr(annotation, "__metadata__", ())):
        return True
    return any(_marks(argument) for argument in get_args(annotation))


def _put(config: Any, path: tuple[str | int, ...], value: str) -> None:
    for part in path[:-1]:
        config = config[part]
    config[path[-1]] = value
