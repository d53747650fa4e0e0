"""The file to import: typed reads of its fields, and an account of what became of each.

A field is named by its dotted path (`model.model_config.hidden_size`, `data_stages.0.data.seed`). Fields that are null
or empty say nothing, need no fate, and are only counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from acorn.positions import MalformedYaml, Positions, load_yaml

REMEDY = "give the YAML that nanotron's run_train.py takes with --config-file"
SECTIONS = ("model", "tokens", "optimizer", "parallelism")
"""Without these there is nothing to train."""
WORDS = {int: "a whole number of at least 0", float: "a number", bool: "true or false", str: "a word"}

Became = Literal["carried over", "replaced", "left out"]


class CannotImport(ValueError):
    """The file is no nanotron config, or one of a model that acorn does not train; says where and what to do."""


@dataclass(frozen=True)
class Fate:
    """What became of one field."""

    path: str
    value: Any
    became: Became
    why: str = ""
    """Where it went or why not; empty for a field carried over under its own name."""
    changes_training: bool = False
    """Whether the imported recipe trains something else because of it."""

    def __str__(self) -> str:
        return f"{self.became}: {self.path} = {short(self.value)}{f': {self.why}' if self.why else ''}"


def short(value: Any, most: int = 60) -> str:
    """`value` on one line, cut to `most` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


class Original:
    """A nanotron config being imported. Raises CannotImport for a value of the wrong type, with its line."""

    def __init__(self, file: Path, data: dict[str, Any], positions: Positions) -> None:
        self.file, self._positions = file, positions
        everything = dict(_leaves(data, ()))
        self._leaves = {path: value for path, value in everything.items() if not _is_empty(value)}
        self._keys = {_dotted(path): path for path in everything}
        self.empty = len(everything) - len(self._leaves)
        self._data = data
        self._fates: dict[str, Fate] = {}

    def fates(self) -> list[Fate]:
        """In the order of the file."""
        return [self._fates[_dotted(path)] for path in self._leaves if _dotted(path) in self._fates]

    def untold(self) -> dict[str, Any]:
        """Fields whose fate is open, and their values."""
        return {_dotted(path): value for path, value in self._leaves.items() if _dotted(path) not in self._fates}

    def under(self, prefix: str) -> list[str]:
        """Paths of the fields at `prefix` or below it."""
        return [name for name in map(_dotted, self._leaves) if name == prefix or name.startswith(f"{prefix}.")]

    def value(self, path: str, default: Any = None) -> Any:
        """What stands at `path`, of any type; `default` where there is nothing or null on the way."""
        node: Any = self._data
        parts = path.split(".")
        for depth, part in enumerate(parts):
            if node is None:
                return default
            if isinstance(node, list) and part.isdigit():
                node = node[int(part)]
            elif isinstance(node, dict):
                node = node.get(part)
            else:
                raise self.refusal(".".join(parts[:depth]), f"expected a mapping, not {short(repr(node))}; correct it")
        return default if node is None else node

    def typed(self, path: str, kind: type) -> Any:
        """The value at `path` as `kind`, None where it is not set; a whole number will do for a float."""
        value = self.value(path)
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits or (kind is int and value < 0):
            raise self.refusal(path, f"{short(repr(value))} is not {WORDS[kind]}; correct it")
        return value

    def count(self, path: str, default: int | None = None) -> int:
        """A whole number of at least 1 that must be there, unless there is a default."""
        value: int | None = self.typed(path, int)
        if value is None and default is None:
            raise self.refusal(path, "is missing: acorn needs it; add it")
        if value == 0:
            raise self.refusal(path, "0 is not at least 1; correct it")
        return value or default or 1

    def refusal(self, path: str, message: str) -> CannotImport:
        where = self._positions.where(tuple(int(part) if part.isdigit() else part for part in path.split(".")))
        return CannotImport(f"{where}: {path}: {message}")

    def carry(self, path: str, kind: type, into: dict[str, Any], name: str | None = None, why: str = "") -> None:
        """Put the value, if there is one, into a block of the recipe; under its own name unless `name` says other."""
        value = self.typed(path, kind)
        if value is not None:
            into[name or path.rpartition(".")[2]] = value
            self.tell(path, "carried over", why)

    def tell(self, path: str, became: Became, why: str = "", changes: bool = False) -> None:
        """Note the fate of the field at `path`, or of every field below it. Nothing there: nothing to note."""
        for name in self.under(path):
            self._fates.setdefault(name, Fate(name, self._leaves[self._keys[name]], became, why, changes))


def read_original(file: Path) -> Original:
    """Raises CannotImport for a file that is missing, no YAML, or no nanotron config."""
    try:
        data, positions = load_yaml(file)
    except MalformedYaml as error:
        raise CannotImport(f"{error.where}: {error}; correct that, or {REMEDY}") from error
    except yaml.YAMLError as error:  # a tag that would build a Python object
        raise CannotImport(f"{file}: not plain YAML: {getattr(error, 'problem', error)}; {REMEDY}") from error
    if isinstance(data.get("steps"), dict):
        raise CannotImport(f"{file}: this is an acorn recipe already: run `acorn pretrain {file}`")
    missing = [name for name in SECTIONS if not isinstance(data.get(name), dict)]
    if missing:
        has = ", ".join(map(str, data)) or "nothing"
        raise CannotImport(
            f"{file}: no nanotron config: it has no section {', '.join(missing)} (at its top: {short(has)}); {REMEDY}"
        )
    return Original(file, data, positions)


def _leaves(node: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything that is no mapping and no list of mappings."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, (*at, str(key)))
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for index, item in enumerate(node):
            yield from _leaves(item, (*at, str(index)))
    else:
        yield at, node


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or value == {} or value == ""


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)
