"""Refs: names for keys. The only mutable thing in a registry, and the roots of garbage collection."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from registry.errors import RegistryError
from registry.files import sync, write_json
from registry.keys import is_key

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]{0,99}")
_SUFFIX = ".json"


def is_name(name: str) -> bool:
    """Whether `name` can be a ref: letters, digits and `._+=@-` in segments joined by `/`, and not like a key."""
    segments = name.split("/")
    fine = all(_SEGMENT.fullmatch(segment) and not segment.endswith(_SUFFIX) for segment in segments)
    return fine and len(name) <= 200 and not is_key(name)


def check_name(name: str) -> str:
    """`name` if it can be a ref. Raises RegistryError otherwise."""
    if is_key(name):
        raise RegistryError(f"{name!r} has the form of a key and would hide one; choose another name")
    if not is_name(name):
        raise RegistryError(
            f"{name!r} cannot name an artifact: use letters, digits and ._+=@- (up to 100 a segment, not starting with "
            'a dot or dash, not ending in .json), with "/" between segments, as in "quickstart/sft"'
        )
    return name


class Refs:
    """Names under `folder`, one JSON file each: `{"name", "key"}`, and `gate` where only that one moves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> str | None:
        """The key `name` stands for; None if there is no such ref. Raises RegistryError if its file is damaged."""
        if not is_name(name):
            return None
        path = self._path(name)
        try:
            key = json.loads(path.read_bytes())["key"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"ref file {path} is damaged ({error}); tag {name!r} again") from error
        if not isinstance(key, str) or not is_key(key):
            raise RegistryError(f"ref file {path} holds {key!r}, which is no key; tag {name!r} again")
        return key

    def write(self, name: str, key: str, gate: str | None = None) -> None:
        """Let `name` stand for `key`. Raises RegistryError for another `key` under a name that a gate guards."""
        guard = self.gate(name)
        if guard is not None and gate is None and self.read(name) != key:
            raise RegistryError(
                f"{name!r} is moved by the gate {guard} alone, once it is passed: run its recipe; or take the "
                f"name away first (acorn artifacts untag {name})"
            )
        gate = gate or guard
        write_json(self._path(check_name(name)), {"name": name, "key": key} | ({"gate": gate} if gate else {}))

    def gate(self, name: str) -> str | None:
        """The gate that guards `name`, if one does."""
        try:
            guard = json.loads(self._path(check_name(name)).read_bytes()).get("gate")
        except (FileNotFoundError, ValueError, AttributeError):  # no ref, or a damaged one, which may be tagged again
            return None
        return str(guard) if guard else None

    def remove(self, name: str) -> None:
        """Raises RegistryError if there is no ref `name`."""
        path = self._path(check_name(name))
        try:
            path.unlink()
        except FileNotFoundError:
            raise RegistryError(f"no ref {name!r}{self.hint(name)}") from None
        sync(path.parent)

    def all(self) -> dict[str, str]:
        """name -> key of every ref, sorted by name."""
        paths = self.folder.rglob("[!.]*" + _SUFFIX) if self.folder.is_dir() else []
        names = sorted(path.relative_to(self.folder).as_posix().removesuffix(_SUFFIX) for path in paths)
        return {name: key for name in names if (key := self.read(name)) is not None}

    def hint(self, name: str) -> str:
        """`; did you mean ...?` with the refs nearest to `name`, or an empty string."""
        nearest = difflib.get_close_matches(name, list(self.all()), n=3, cutoff=0.5)
        return f"; did you mean {' or '.join(nearest)}?" if nearest else ""

    def _path(self, name: str) -> Path:
        return self.folder / (name + _SUFFIX)
