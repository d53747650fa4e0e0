"""Where an artifact comes from, and how two differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from registry.manifest import Manifest


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()
"""Stands for a field that one side of a difference does not have."""


def ancestors_first(keys: Iterable[str], inputs_of: Callable[[str], Iterable[str]]) -> list[str]:
    """`keys` and everything they were made from, each once, inputs before what was made of them.

    `inputs_of(key)` gives the keys of an artifact's inputs. Iterative: a lineage may be deep, and one forged into a
    circle must not hang us.
    """
    order: list[str] = []
    seen: set[str] = set()
    stack = [(key, False) for key in sorted(set(keys), reverse=True)]
    while stack:
        key, expanded = stack.pop()
        if expanded:
            order.append(key)
        elif key not in seen:
            seen.add(key)
            stack.append((key, True))
            stack.extend((parent, False) for parent in sorted(set(inputs_of(key)), reverse=True))
    return order


def input_keys(manifest: Manifest) -> list[str]:
    return [entry.key for entry in manifest.inputs.values()]


def differences(left: Manifest, right: Manifest) -> dict[str, tuple[Any, Any]]:
    """{dotted field: (left value, right value)} over stage, config, inputs, sources, execution, libraries and metrics.

    Inputs are compared by digest. `ABSENT` stands for a field one side lacks. Lists are compared whole.
    """
    one, other = _flat(_compared(left)), _flat(_compared(right))
    names = [*one, *(name for name in other if name not in one)]
    pairs = {name: (one.get(name, ABSENT), other.get(name, ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _compared(manifest: Manifest) -> dict[str, Any]:
    return {
        "kind": manifest.kind,
        "stage": manifest.stage,
        "stage_version": manifest.stage_version,
        "config": manifest.config,
        "inputs": {role: entry.digest for role, entry in manifest.inputs.items()},
        "sources": manifest.sources,
        "execution": manifest.execution,
        "libraries": manifest.libraries,
        "metrics": manifest.metrics,
    }


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)  # 1 and 1.0 give different keys, so they differ


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and (item or not prefix):
            result |= _flat(item, f"{prefix}{name}.")
        else:
            result[prefix + name] = item
    return result
