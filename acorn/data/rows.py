"""Rows of a data artifact, kept and rejected, one at a time and filtered: the files may be larger than memory.

Any artifact with `.jsonl` files at its top has rows: `chat`, `preferences`, `steps`, and a `corpus` in its folders.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acorn.launch import StepFailed
from registry import Registry, UnknownArtifact

REFUSED = ("rejected.jsonl", "removed.jsonl")
"""Files whose rows were left out, each with its `reason`."""
_FIRST = {"train": 0, "validation": 1, "test": 2, "rejected": 8, "removed": 9}


@dataclass(frozen=True)
class Found:
    """One row, and where it stands."""

    file: str
    number: int
    """Line in the file, from 1."""
    row: dict[str, Any]

    @property
    def reason(self) -> str | None:
        """Why it was left out; None for a row that was kept."""
        return str(self.row.get("reason", "no reason given")) if Path(self.file).name in REFUSED else None


@dataclass(frozen=True)
class Wanted:
    """Which rows to show; what is not set lets every row pass."""

    kept: bool = True
    rejected: bool = True
    reasons: frozenset[str] = frozenset()
    """Only rows rejected for one of these; `contaminated` stands for `contaminated: corpus/problems` as well."""
    grep: re.Pattern[str] | None = None
    """Searched for in the row as JSON."""

    def passes(self, found: Found, text: str) -> bool:
        reason = found.reason
        if not (self.kept if reason is None else self.rejected):
            return False
        if self.reasons and not self.reasons & {reason, kind_of(reason)}:
            return False
        return self.grep is None or bool(self.grep.search(text))


def kind_of(reason: str | None) -> str | None:
    """What stands before the colon: `contaminated` of `contaminated: corpus/problems`."""
    return reason and reason.partition(":")[0]


@dataclass
class Seen:
    """What was met on the way through all rows."""

    kept: int = 0
    passed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def data_folder(registry: Registry, name: str) -> Path:
    """Folder of the rows of `name`: a folder, a ref (`recipe/step`), a key, or a step's name where one ref ends in it.

    Raises FileNotFoundError for none of these, StepFailed for a step name of several recipes.
    """
    if Path(name).is_dir():
        return Path(name)
    fitting = [ref for ref in registry.refs() if ref.rpartition("/")[2] == name]
    if len(fitting) > 1 and name not in registry.refs():
        raise StepFailed(f"'{name}' is a step of several recipes: name one of {', '.join(sorted(fitting))}")
    try:
        return registry.get(fitting[0] if len(fitting) == 1 else name).path
    except UnknownArtifact as error:
        raise FileNotFoundError(f"{error} ({name} is no folder either)") from error


def row_files(folder: Path) -> list[Path]:
    """The files with rows: kept ones before rejected ones. Raises StepFailed if there is none."""
    found = [path for path in folder.glob("*.jsonl") if path.is_file()] + list(folder.glob("*/*.jsonl"))
    found = [path for path in found if path.relative_to(folder).parts[0] != "logs"]
    if not found:
        raise StepFailed(f"{folder} has no .jsonl file: only data has rows to show (chat, preferences, steps, corpus)")
    return sorted(found, key=lambda path: (_FIRST.get(path.stem, 5), str(path)))


def walk(folder: Path, wanted: Wanted, seen: Seen) -> Iterator[Found]:
    """Every row that `wanted` lets pass, in the order of the files; `seen` counts all that were read.

    Raises StepFailed naming file and line for one that is no JSON object.
    """
    for path in row_files(folder):
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                found = Found(str(path.relative_to(folder)), number, _parse(path, number, text))
                if found.reason is None:
                    seen.kept += 1
                else:
                    seen.reasons[found.reason] += 1
                if wanted.passes(found, text):
                    seen.passed += 1
                    yield found


def _parse(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise StepFailed(f"{path}:{number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise StepFailed(f"{path}:{number}: a row is a JSON object, not {type(row).__name__}")
    return row
