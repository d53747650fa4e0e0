"""The manifest: everything known about an artifact, as plain JSON beside its files (fields: docs/registry.md).

A manifest proves itself. `checksum` is the sha256 of all other fields, `digest` follows from `files`, `key` follows
from stage, config and input digests, and the file has exactly one spelling; so a single changed bit is noticed, and a
remote cannot pass off one thing as another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from registry.digest import RECORDS, merkle
from registry.errors import RegistryError
from registry.files import MANIFEST, check_relative
from registry.keys import KEY_LENGTH, artifact_key, canonical_json, plain, sha256_text

SCHEMA = 1
MAX_BYTES = 256 << 20
"""A larger manifest is refused: it would be a million files, or an attack."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{KEY_LENGTH}}}$")]
RelativePath = Annotated[str, AfterValidator(check_relative)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FileEntry(_Part):
    """One file: sha256 of its content and its size in bytes."""

    sha256: Sha256
    size: int = Field(ge=0)


class InputEntry(_Part):
    """One input: the key it was found under and the digest it had."""

    key: Key
    digest: Sha256


class Git(_Part):
    """The code at work: commit, and whether the checkout had changes. Both None outside a checkout."""

    commit: str | None = None
    dirty: bool | None = None


class Manifest(_Part):
    """What `manifest.json` holds; docs/registry.md documents each field."""

    schema_version: int
    key: Key
    kind: str
    stage: str
    stage_version: int
    config: dict[str, Any]
    inputs: dict[str, InputEntry]
    digest: Sha256
    files: dict[RelativePath, FileEntry]
    records: dict[RelativePath, FileEntry]
    execution: dict[str, Any]
    sources: dict[str, str]
    libraries: dict[str, str]
    git: Git
    licenses: list[str]
    ledger: dict[str, int | float | str]
    metrics: dict[str, int | float | str]
    created: str
    checksum: Sha256

    @property
    def size(self) -> int:
        """Bytes of all files and records."""
        return sum(entry.size for entry in (*self.files.values(), *self.records.values()))

    def render(self) -> bytes:
        """The one spelling of this manifest."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()


def make_manifest(**fields: Any) -> Manifest:
    """A manifest of `fields` (all but `schema_version`, `key`, `digest`, `created` and `checksum`, which follow)."""
    fields = plain(fields)
    fields["schema_version"] = SCHEMA
    fields["digest"] = merkle(fields["files"])
    fields["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    digests = {role: entry["digest"] for role, entry in fields["inputs"].items()}
    fields["key"] = artifact_key(fields["stage"], fields["stage_version"], fields["config"], digests)
    try:
        unsigned = Manifest.model_validate(fields | {"checksum": "0" * 64})
    except ValidationError as error:
        raise RegistryError(f"the manifest cannot record {_first(error)}") from error
    return unsigned.model_copy(update={"checksum": _checksum(unsigned)})


def numbers(values: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Measurements as JSON holds them. A NaN or infinity becomes the string "nan", "inf" or "-inf": a diverged run is
    worth recording, and `float()` reads it back."""
    result: dict[str, int | float | str] = {}
    for name, value in values.items():
        try:
            number = int(value) if isinstance(value, int) else float(value)
        except (TypeError, ValueError) as error:
            raise RegistryError(f"{name} is {value!r}: metrics and ledger hold numbers only") from error
        result[name] = number if math.isfinite(number) else str(number)
    return result


def read_manifest(raw: bytes, key: str, trusted: bool = False) -> Manifest:
    """Parse and check `manifest.json` of artifact `key`. `trusted`: these very bytes were checked before.

    Raises ValueError saying what is wrong.
    """
    try:
        data = json.loads(raw, parse_constant=_no_constant)
        if isinstance(data, dict) and data.get("schema_version", SCHEMA) != SCHEMA:
            raise ValueError(
                f"schema version {data['schema_version']!r}, this acorn reads {SCHEMA}; use the newer acorn"
            )
        manifest = Manifest.model_validate(data)
        if not trusted:
            _check(manifest, raw)
    except ValidationError as error:
        raise ValueError(_first(error)) from error
    except (UnicodeError, json.JSONDecodeError, RecursionError, RegistryError) as error:
        raise ValueError(f"not the JSON of a manifest: {error}") from error
    if manifest.key != key:
        raise ValueError(f"it is the manifest of {manifest.key}")
    return manifest


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds the number {name}")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _check(manifest: Manifest, raw: bytes) -> None:
    if manifest.checksum != _checksum(manifest):
        raise ValueError("its checksum does not match: a field was changed")
    if manifest.render() != raw:
        raise ValueError("its text was changed")
    if manifest.digest != merkle({path: entry.model_dump() for path, entry in manifest.files.items()}):
        raise ValueError("its digest is not that of its files")
    digests = {role: entry.digest for role, entry in manifest.inputs.items()}
    if manifest.key != artifact_key(manifest.stage, manifest.stage_version, manifest.config, digests):
        raise ValueError("its key is not that of its stage, config and inputs")
    _check_layout(manifest)


def _check_layout(manifest: Manifest) -> None:
    if MANIFEST in manifest.files or any(path.startswith(RECORDS) for path in manifest.files):
        raise ValueError(f"{MANIFEST} and {RECORDS} cannot be among its files")
    if not all(path.startswith(RECORDS) for path in manifest.records):
        raise ValueError(f"records must lie under {RECORDS}")
    paths = {*manifest.files, *manifest.records}
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in paths for depth in range(1, len(parts))):
            raise ValueError(f"{path!r} lies inside another file")


def _checksum(manifest: Manifest) -> str:
    return sha256_text(canonical_json(manifest.model_dump(mode="json", exclude={"checksum"})))
